package deputy

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unum/sys"
)

// atFDCWD is AT_FDCWD as a register holds it.
const atFDCWD = ^uint64(99)

func TestProgram(t *testing.T) {
	r := newRig(t)
	file := t.TempDir() + "/f"
	if err := os.WriteFile(file, []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &Program{Tag: 5}
	pid := p.Do(unix.SYS_GETPID)
	fails := p.Do(unix.SYS_CLOSE, 999)
	fd := p.Must(unix.SYS_OPENAT, atFDCWD, p.String(file), unix.O_RDONLY)
	buf := p.Bytes(make([]byte, 16))
	read := p.MustRef(fd, unix.SYS_READ, buf, 16)
	shut := p.DoRef(fd, unix.SYS_CLOSE)
	res := r.run(r.stub, p)
	if _, err := res.Err(); err != nil {
		t.Errorf("the program ended with %v", err)
	}
	want := map[int]int64{pid: int64(r.pid), fails: -int64(unix.EBADF), fd: 3, read: 10, shut: 0}
	for i, v := range want {
		if res.Rets[i] != v {
			t.Errorf("call %d returned %d, want %d", i, res.Rets[i], v)
		}
	}
	b := make([]byte, 10)
	if err := r.stub.Mem(buf, b); err != nil || string(b) != "0123456789" {
		t.Errorf("the stub read %q, %v", b, err)
	}
	if tag, begun, err := r.stub.Last(); tag != 5 || !begun || err != nil {
		t.Errorf("the last program: tag %d, begun %v, %v", tag, begun, err)
	}
}

// A call that must not fail and does ends the program; what follows is not
// done.
func TestProgramFails(t *testing.T) {
	r := newRig(t)
	dir := t.TempDir()
	p := &Program{}
	p.Do(unix.SYS_GETPID)
	at := p.Must(unix.SYS_CHDIR, p.String(dir+"/no"))
	p.Do(unix.SYS_MKDIR, p.String(dir+"/made"), 0o700)
	res := r.run(r.stub, p)
	if i, err := res.Err(); i != at || err != unix.ENOENT {
		t.Errorf("ended at call %d with %v, want %d, ENOENT", i, err, at)
	}
	if _, err := os.Stat(dir + "/made"); err == nil {
		t.Error("what follows a failed call was done")
	}
	// The stub is as good as before.
	p = &Program{}
	p.Do(unix.SYS_GETPID)
	if res := r.run(r.stub, p); res.Rets[0] != int64(r.pid) {
		t.Errorf("next program: %v", res.Rets)
	}
}

// Data that does not fit the stub's own page is mapped; a program with too many
// calls is refused.
func TestProgramSize(t *testing.T) {
	r := newRig(t)
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	got := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(in)
		got <- b
	}()
	p := &Program{}
	p.Big()
	at := p.Bytes(data)
	p.Must(unix.SYS_WRITE, 9, at, uint64(len(data)))
	p.Must(unix.SYS_CLOSE, 9)
	res, err := r.stub.Do(r.ctx, []Injection{{File: out, Num: 9}}, p)
	out.Close()
	if err != nil || res.Rets[0] != int64(len(data)) {
		t.Fatalf("write of 1 MiB: %v, %v", res, err)
	}
	if !bytes.Equal(await(t, "the end of the pipe", got), data) {
		t.Error("other bytes arrived")
	}
	for what, p := range map[string]*Program{"calls": {}, "bytes": {}} {
		if what == "calls" {
			for range maxCalls + 1 {
				p.Do(unix.SYS_GETPID)
			}
		} else {
			p.Bytes(make([]byte, arenaSize+1))
		}
		if _, err := r.stub.Run(r.ctx, p); err == nil || !strings.Contains(err.Error(), "at most") {
			t.Errorf("too many %s: %v", what, err)
		}
	}
}

func TestDescriptors(t *testing.T) {
	r := newRig(t)
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := r.stub.Do(r.ctx, []Injection{{File: out, Num: 50}}, nil); err != nil {
		t.Fatal(err)
	}
	out.Close()
	f, err := r.stub.Getfd(50)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString("x")
	f.Close()
	b := make([]byte, 2)
	if n, err := in.Read(b); n != 1 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
	if _, err := r.stub.Getfd(51); !errors.Is(err, unix.EBADF) {
		t.Errorf("a descriptor that it does not hold: %v", err)
	}
}

// A forked stub says hello, and takes programs of its own.
func TestFork(t *testing.T) {
	r := newRig(t)
	done := make(chan *Result, 1)
	first := &Program{}
	first.Do(unix.SYS_GETPPID)
	born, cancel, err := r.reg.ExpectChild(r.pid, First{Prog: first, Done: func(res *Result, err error) { done <- res }})
	if err != nil {
		t.Fatal(err)
	}
	defer cancel()
	if _, _, err := r.reg.ExpectChild(r.pid); err == nil {
		t.Error("two children were expected at once")
	}
	p := &Program{}
	args := p.Words(0, 0, 0, 0, uint64(unix.SIGCHLD), 0, 0, 0) // struct clone_args: fork
	at := p.Fork(args, 64)
	res := r.run(r.stub, p)
	child := r.await(born)
	if res.Rets[at] != int64(child.HostPid) {
		t.Errorf("the fork returned %d, the child is %d", res.Rets[at], child.HostPid)
	}
	// getppid is trapped, and the rig lets it be made.
	if res := await(t, "the child's first program", done); res == nil || res.Rets[0] != int64(r.pid) {
		t.Errorf("the child's first program: %v", res)
	}
	signals := make(chan unix.Signal, 1)
	r.stub.OnSignal(func(s *Signal) { signals <- s.Info.Signo(); s.Done() })
	if err := child.Kill(); err != nil {
		t.Fatal(err)
	}
	await(t, "the child's end", child.Gone())
	if sig := await(t, "the parent's signal", signals); sig != unix.SIGCHLD {
		t.Errorf("the parent got %v", sig)
	}
}

// A signal is told with who sent it; until it is dealt with the stub stands.
func TestSignals(t *testing.T) {
	r := newRig(t)
	got := make(chan *Signal, 4)
	if err := unix.Kill(r.pid, unix.SIGTERM); err != nil { // before anybody listens: it waits
		t.Fatal(err)
	}
	r.stub.OnSignal(func(s *Signal) { got <- s })
	s := await(t, "the held signal", got)
	if s.Info.Signo() != unix.SIGTERM || int(s.Info.Pid()) != os.Getpid() {
		t.Errorf("signal %v of %d", s.Info.Signo(), s.Info.Pid())
	}
	if err := unix.Kill(r.pid, unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	ran := make(chan bool, 1)
	p := &Program{}
	p.Do(unix.SYS_GETPID)
	if err := r.stub.Start(nil, p, func(*Result, error) { ran <- true }); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ran:
		t.Error("the stub ran a program in the midst of a signal")
	case <-got:
		t.Error("a second signal was told before the first was dealt with")
	case <-time.After(100 * time.Millisecond):
	}
	s.Done()
	s = await(t, "the next signal", got)
	if s.Info.Signo() != unix.SIGUSR1 {
		t.Errorf("then came %v", s.Info.Signo())
	}
	s.Done()
	await(t, "the program", ran)
}

// Another daemon takes the stub over: it hears of the signal that the first had
// not dealt with, under the same number.
func TestSignalAgain(t *testing.T) {
	r := newRig(t)
	got := make(chan *Signal, 4)
	r.stub.OnSignal(func(s *Signal) { got <- s })
	if err := unix.Kill(r.pid, unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	first := await(t, "the signal", got)
	r.die()
	r.daemon()
	s, err := r.reg.Adopt(r.pid, 1)
	if err != nil {
		t.Fatal(err)
	}
	r.serve()
	s.OnSignal(func(s *Signal) { got <- s })
	again := await(t, "the signal again", got)
	if again.ID != first.ID || again.Info.Signo() != unix.SIGHUP {
		t.Errorf("first %d, again %d: %v", first.ID, again.ID, again.Info.Signo())
	}
	again.Done()
	p := &Program{}
	p.Do(unix.SYS_GETPID)
	if res := r.run(s, p); res.Rets[0] != int64(r.pid) {
		t.Errorf("under the new daemon: %v", res.Rets)
	}
	select {
	case s := <-got:
		t.Errorf("a signal that nobody sent: %v", s.Info.Signo())
	default:
	}
}

// A program that was begun is done whether the daemon lives or not, and the next
// one is told the result.
func TestOrphan(t *testing.T) {
	r := newRig(t)
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := r.stub.Do(r.ctx, []Injection{{File: in, Num: 8}}, nil); err != nil {
		t.Fatal(err)
	}
	p := &Program{Tag: 42}
	at := p.Must(unix.SYS_READ, 8, p.Bytes(make([]byte, 8)), 8)
	begun := make(chan bool, 1)
	if err := r.stub.Begin(First{Prog: p, Begun: func() { begun <- true }}); err != nil {
		t.Fatal(err)
	}
	await(t, "the program's begin", begun)
	r.die()
	out.WriteString("abc")
	out.Close()
	r.daemon()
	s, err := r.reg.Adopt(r.pid, 1)
	if err != nil {
		t.Fatal(err)
	}
	orphans := make(chan *Result, 1)
	r.serve()
	time.Sleep(20 * time.Millisecond) // it has called; the result waits
	s.OnOrphan(func(res *Result) { orphans <- res })
	s.OnSignal(nil)
	res := await(t, "the orphan", orphans)
	if res.Tag != 42 || res.Rets[at] != 3 {
		t.Errorf("the orphan: %+v", res)
	}
}

// What was written for a stub that it never began is told apart.
func TestLastNotBegun(t *testing.T) {
	r := newRig(t)
	ran := &Program{Tag: 9}
	ran.Do(unix.SYS_GETPID)
	r.run(r.stub, ran)
	if tag, begun, err := r.stub.Last(); tag != 9 || !begun || err != nil {
		t.Errorf("a program that ran: tag %d, begun %v, %v", tag, begun, err)
	}
	// As a daemon leaves it that dies before it answers.
	p := &Program{Tag: 10}
	p.Do(unix.SYS_GETPID)
	if err := sys.WriteMem(r.pid, sys.Piece{Addr: dataBase + offTag, Data: p.table()}); err != nil {
		t.Fatal(err)
	}
	if tag, begun, err := r.stub.Last(); tag != 10 || begun || err != nil {
		t.Errorf("a program that was written only: tag %d, begun %v, %v", tag, begun, err)
	}
}

// Jobs of a stub that ends are answered.
func TestGone(t *testing.T) {
	r := newRig(t)
	errs := make(chan error, 2)
	r.stub.OnSignal(func(*Signal) {}) // stands for ever
	if err := unix.Kill(r.pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p := &Program{}
	p.Do(unix.SYS_GETPID)
	if err := r.stub.Start(nil, p, func(_ *Result, err error) { errs <- err }); err != nil {
		t.Fatal(err)
	}
	if r.stub.Dead() {
		t.Error("dead too early")
	}
	if err := r.stub.Kill(); err != nil {
		t.Fatal(err)
	}
	await(t, "the stub's end", r.stub.Gone())
	if err := await(t, "the job's end", errs); !errors.Is(err, ErrGone) {
		t.Errorf("the job ended with %v", err)
	}
	if _, err := r.stub.Run(r.ctx, p); !errors.Is(err, ErrGone) {
		t.Errorf("another job: %v", err)
	}
	if err := r.stub.Signal(unix.SIGTERM, nil); !errors.Is(err, ErrGone) {
		t.Errorf("a signal: %v", err)
	}
	if err := r.stub.Kill(); err != nil {
		t.Errorf("killed twice: %v", err)
	}
	if r.reg.Len() != 0 || r.reg.Find(r.pid) != nil {
		t.Errorf("the registry still knows %d stubs", r.reg.Len())
	}
}

// A program that must not run if a signal is pending: the signal is taken and
// told as any other, and the rest of the program is not done.
func TestUnlessPending(t *testing.T) {
	r := newRig(t)
	got := make(chan *Signal, 2)
	r.stub.OnSignal(func(s *Signal) { got <- s })
	program := func() (*Program, int) {
		p := &Program{}
		p.UnlessPending(unix.SIGCONT)
		return p, p.Do(unix.SYS_GETPID)
	}
	p, at := program()
	if res := r.run(r.stub, p); res.Rets[at] != int64(r.pid) {
		t.Errorf("nothing is pending: %v", res.Rets)
	}
	// The stub stands in its call, so that the next one stays pending.
	r.stub.Signal(unix.SIGUSR1, nil)
	first := await(t, "the first signal", got)
	r.stub.Signal(unix.SIGCONT, sys.MakeSiginfo(unix.SIGCONT, -7, 0, 0))
	p, _ = program()
	done := make(chan *Result, 1)
	if err := r.stub.Begin(First{Prog: p, Done: func(res *Result, err error) { done <- res }}); err != nil {
		t.Fatal(err)
	}
	first.Done()
	res := await(t, "the program's end", done)
	if len(res.Rets) != 1 || res.Rets[0] != int64(unix.SIGCONT) {
		t.Errorf("SIGCONT is pending: %v", res.Rets)
	}
	if _, err := res.Err(); err != nil {
		t.Error(err)
	}
	second := await(t, "the second signal", got)
	if second.Info.Signo() != unix.SIGCONT || second.Info.Code() != -7 {
		t.Errorf("told: %v, code %d", second.Info.Signo(), second.Info.Code())
	}
	second.Done()
	// One that is passed over in its turn has no results.
	p, _ = program()
	if err := r.stub.Begin(First{Prog: p, Skip: func() bool { return true }, Done: func(res *Result, err error) { done <- res }}); err != nil {
		t.Fatal(err)
	}
	if res := await(t, "the skipped program", done); len(res.Rets) != 0 {
		t.Errorf("skipped: %v", res.Rets)
	}
}
