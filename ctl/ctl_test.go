package ctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"unum"
)

// fake is a daemon that runs commands as plain processes. It is shared by
// successive servers, as processes outlive daemons.
type fake struct {
	mu    sync.Mutex
	procs map[unum.Pid]*fakeProc
	alone bool // it has not heard of any node yet

	before, after func(*Command) // called by Start
}

type fakeProc struct {
	id   string
	uid  uint32
	done chan struct{}
	exit Exit
}

func (b *fake) Nodes(context.Context, Caller) ([]Node, error) {
	if b.alone {
		return nil, nil
	}
	return []Node{{ID: "n1", State: unum.Up, Self: true}, {ID: "n2", State: unum.Suspect}}, nil
}

func (b *fake) Ps(context.Context, Caller) ([]Proc, error) {
	return []Proc{{Pid: 65540, Node: "n2", Home: "n1", Command: "printf \xff\xfe"}}, nil
}

func (b *fake) Why(_ context.Context, _ Caller, pid unum.Pid) (*Why, error) {
	return nil, &unum.Error{Op: "why", Pid: pid, Err: unum.ErrNoProcess}
}

func (b *fake) CheckNode(_ context.Context, n unum.NodeID) error {
	if n != "n1" && n != "n2" {
		return &unum.Error{Op: "run", Node: n, Err: unum.ErrNoNode}
	}
	return nil
}

func (b *fake) OpenTTY(context.Context) (*os.File, *os.File, error) { return pty.Open() }

func (b *fake) Started(_ context.Context, _ Caller, id string) (unum.Pid, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for pid, p := range b.procs {
		if p.id == id {
			return pid, nil
		}
	}
	return 0, unum.ErrNoProcess
}

func (b *fake) Start(_ context.Context, c Caller, cmd *Command) (unum.Pid, error) {
	if b.before != nil {
		b.before(cmd)
	}
	pid, err := b.start(c, cmd)
	if b.after != nil {
		b.after(cmd)
	}
	return pid, err
}

func (b *fake) start(c Caller, cmd *Command) (unum.Pid, error) {
	path, err := exec.LookPath(cmd.Argv[0])
	if err != nil {
		return 0, &unum.Error{Op: "run", Path: cmd.Argv[0], Err: unix.ENOENT}
	}
	p, err := os.StartProcess(path, cmd.Argv, &os.ProcAttr{
		Dir: cmd.Dir, Env: cmd.Env, Files: cmd.Files[:],
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: cmd.TTY},
	})
	if err != nil {
		return 0, &unum.Error{Op: "run", Path: path, Err: err}
	}
	fp := &fakeProc{id: cmd.ID, uid: c.Uid, done: make(chan struct{})}
	b.mu.Lock()
	b.procs[unum.Pid(p.Pid)] = fp
	b.mu.Unlock()
	go func() {
		st, _ := p.Wait()
		ws := st.Sys().(syscall.WaitStatus)
		if ws.Signaled() {
			fp.exit = Exit{Signal: int(ws.Signal()), Core: ws.CoreDump()}
		} else {
			fp.exit = Exit{Code: ws.ExitStatus()}
		}
		close(fp.done)
	}()
	return unum.Pid(p.Pid), nil
}

func (b *fake) Wait(ctx context.Context, c Caller, pid unum.Pid) (Exit, error) {
	b.mu.Lock()
	p := b.procs[pid]
	b.mu.Unlock()
	if p == nil {
		return Exit{}, &unum.Error{Op: "wait", Pid: pid, Err: unum.ErrNoProcess}
	}
	select {
	case <-p.done:
		return p.exit, nil
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

func (b *fake) Found(context.Context) (found []unum.Pid, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for pid := range b.procs {
		found = append(found, pid)
	}
	return found, nil
}

func (b *fake) Release(pid unum.Pid) {
	b.mu.Lock()
	delete(b.procs, pid)
	b.mu.Unlock()
}

func (b *fake) Signal(_ context.Context, _ Caller, pid unum.Pid, sig unix.Signal) error {
	return unix.Kill(-int(pid), sig)
}

func (b *fake) Logs(_ context.Context, _ Caller, pid unum.Pid, _ int64) (*LogChunk, error) {
	return nil, &unum.Error{Op: "logs", Pid: pid, Err: unum.ErrNoProcess}
}

type rig struct {
	t    *testing.T
	dir  string
	b    *fake
	srv  *Server
	logs *LogStore
	*Client
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, dir: t.TempDir(), b: &fake{procs: map[unum.Pid]*fakeProc{}}}
	r.Client = &Client{Path: filepath.Join(r.dir, "control.sock"), Patience: 2 * time.Second}
	r.listen()
	t.Cleanup(func() { r.srv.Close(); r.logs.Close() })
	return r
}

func (r *rig) listen() {
	r.t.Helper()
	var err error
	if r.logs, err = OpenLogs(filepath.Join(r.dir, "logs")); err != nil {
		r.t.Fatal(err)
	}
	if r.srv, err = Listen(ServerConfig{Path: r.Path, Backend: r.b, Logs: r.logs}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) restart() {
	r.srv.Close()
	r.logs.Close()
	r.listen()
}

func sh(script string) *RunRequest {
	return &RunRequest{Argv: []string{"sh", "-c", script}, Env: os.Environ(), Dir: "/"}
}

// stdio returns pipes for a command and a reader of its output.
func stdio(t *testing.T, input string) (Stdio, func() string) {
	t.Helper()
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() { io.WriteString(inW, input); inW.Close() }()
	got := make(chan string, 1)
	go func() { b, _ := io.ReadAll(outR); got <- string(b) }()
	return Stdio{inR, outW, outW}, func() string {
		inR.Close()
		outW.Close()
		return <-got
	}
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestQueries(t *testing.T) {
	r, ctx := newRig(t), testContext(t)
	nodes, err := r.Nodes(ctx)
	if err != nil || len(nodes) != 2 || nodes[1].State != unum.Suspect {
		t.Fatalf("nodes: %v, %v", nodes, err)
	}
	ps, err := r.Ps(ctx)
	if err != nil || len(ps) != 1 || ps[0].Command != "printf \xff\xfe" {
		t.Fatalf("ps: %v, %v", ps, err)
	}
	if _, err = r.Why(ctx, 7); !errors.Is(err, unum.ErrNoProcess) || err.Error() != "why 7: no such process" {
		t.Fatalf("why: %v", err)
	}
	r.b.alone = true
	if nodes, err = r.Nodes(ctx); err != nil || len(nodes) != 0 {
		t.Fatalf("nodes of a daemon that knows none: %v, %v", nodes, err)
	}
}

func TestRun(t *testing.T) {
	r, ctx := newRig(t), testContext(t)
	for _, c := range []struct {
		script, in, out string
		exit            Exit
	}{
		{"exit 7", "", "", Exit{Code: 7}},
		{"cat; echo end >&2", "hello\n", "hello\nend\n", Exit{}},
		{"kill -9 $$", "", "", Exit{Signal: 9}},
		{"head -c 300000 /dev/zero | wc -c", "", "300000\n", Exit{}},
	} {
		io, out := stdio(t, c.in)
		exit, err := r.Run(ctx, sh(c.script), io)
		if got := out(); err != nil || exit != c.exit || got != c.out {
			t.Errorf("%q: %+v %q, %v; want %+v %q", c.script, exit, got, err, c.exit, c.out)
		}
	}
	r.srv.Close() // waits for its goroutines
	if n := len(r.b.procs); n != 0 {
		t.Errorf("%d processes not released", n)
	}
}

func TestRunRefusals(t *testing.T) {
	r, ctx := newRig(t), testContext(t)
	io, out := stdio(t, "")
	defer out()
	req := sh("true")
	req.Node = "n9"
	if _, err := r.Run(ctx, req, io); !errors.Is(err, unum.ErrNoNode) || err.Error() != "run on n9: no such node" {
		t.Errorf("n9: %v", err)
	}
	req = sh("true")
	req.Argv[0] = "/no/such/thing"
	if _, err := r.Run(ctx, req, io); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("ENOENT: %v", err)
	}
	req = sh("true")
	req.User = "nobody-of-that-name"
	if _, err := r.Run(ctx, req, io); err == nil || !strings.Contains(err.Error(), "no such user") {
		t.Errorf("user: %v", err)
	}
	cmd := &Command{}
	if err := cmd.become(Caller{Uid: 1000}, "root"); !errors.Is(err, unum.ErrDenied) {
		t.Errorf("an ordinary user became root: %v", err)
	}
}

// The client's whole life with a signal: it reaches the command, which
// decides.
func TestRunSignal(t *testing.T) {
	r, ctx := newRig(t), testContext(t)
	inR, inW, _ := os.Pipe()
	defer inW.Close()
	outR, outW, _ := os.Pipe()
	ready := make(chan string, 1)
	go func() {
		b := make([]byte, 64)
		n, _ := outR.Read(b)
		ready <- string(b[:n])
		unix.Kill(unix.Getpid(), unix.SIGUSR1)
	}()
	exit, err := r.Run(ctx, sh(`trap "exit 42" USR1; echo ready; while :; do sleep 0.05; done`), Stdio{inR, outW, outW})
	if err != nil || exit.Code != 42 || <-ready != "ready\n" {
		t.Fatalf("%+v, %v", exit, err)
	}
}

func TestRunCancel(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(testContext(t))
	io, out := stdio(t, "")
	defer out()
	time.AfterFunc(100*time.Millisecond, cancel)
	exit, err := r.Run(ctx, sh("sleep 100"), io)
	if err != nil || exit.Signal != int(unix.SIGHUP) {
		t.Fatalf("%+v, %v", exit, err)
	}
}

// A daemon that is replaced while a command runs costs nothing.
func TestRunOverRestart(t *testing.T) {
	r, ctx := newRig(t), testContext(t)
	io, out := stdio(t, "")
	restarted := make(chan struct{})
	time.AfterFunc(100*time.Millisecond, func() { r.restart(); close(restarted) })
	exit, err := r.Run(ctx, sh("for i in 1 2 3 4 5 6; do echo $i; sleep 0.1; done; exit 3"), io)
	if got := out(); err != nil || exit.Code != 3 || got != "1\n2\n3\n4\n5\n6\n" {
		t.Fatalf("%+v %q, %v", exit, got, err)
	}
	<-restarted
}

// What nobody comes to follow is forgotten when it has ended: its client is
// gone, or has heard of its end just before the daemon died.
func TestFoundAndNotFollowed(t *testing.T) {
	r, ctx := newRig(t), testContext(t)
	pid, err := r.b.start(Caller{}, &Command{Argv: []string{"sh", "-c", "exit 3"}})
	if err != nil {
		t.Fatal(err)
	}
	r.restart()
	r.srv.claimed(pid, time.Now())
	if found, _ := r.b.Found(ctx); len(found) != 0 {
		t.Errorf("%v are remembered", found)
	}

	gate := filepath.Join(r.dir, "gate")
	if err := unix.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	ran := make(chan Exit, 1)
	go func() {
		io, out := stdio(t, "")
		exit, err := r.Run(ctx, sh("read line < "+gate+"; exit 3"), io)
		if out(); err != nil {
			t.Error(err)
		}
		ran <- exit
	}()
	f, err := os.OpenFile(gate, os.O_WRONLY, 0) // it has started
	if err != nil {
		t.Fatal(err)
	}
	found, _ := r.b.Found(ctx)
	for len(found) != 1 || !r.srv.isFollowed(found[0]) {
		if ctx.Err() != nil {
			t.Fatalf("%v, and nobody follows", found)
		}
		time.Sleep(time.Millisecond)
	}
	r.srv.claimed(found[0], time.Now())
	f.Close()
	if exit := <-ran; exit.Code != 3 {
		t.Errorf("%+v", exit)
	}
}

func TestDetachAndLogs(t *testing.T) {
	r, ctx := newRig(t), testContext(t)
	pid, err := r.Detach(ctx, sh("echo one; echo two >&2; exit 5"))
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	for off := int64(0); ; {
		l, err := r.Logs(ctx, pid, off)
		if err != nil {
			t.Fatal(err)
		}
		got, off = append(got, l.Data...), l.Next
		if l.Ended {
			if l.Status != "exit 5" {
				t.Errorf("status %q", l.Status)
			}
			break
		}
		if ctx.Err() != nil {
			t.Fatal("the log does not end")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if string(got) != "one\ntwo\n" {
		t.Errorf("log %q", got)
	}
	if _, err := r.Logs(ctx, 1, 0); !errors.Is(err, unum.ErrNoProcess) {
		t.Errorf("log of 1: %v", err)
	}
	if _, err := r.logs.Read(Caller{Uid: 4711}, pid, 0); !errors.Is(err, unum.ErrDenied) {
		t.Errorf("another user's log: %v", err)
	}
}

// A flood stays bounded, and what is kept is its end.
func TestLogBound(t *testing.T) {
	s, err := OpenLogs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p, err := s.create(0, "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.keep(70000); err != nil {
		t.Fatal(err)
	}
	line := bytes.Repeat([]byte("x"), 1023)
	for i := range 8 << 10 {
		fmt.Fprintf(p.f, "%s\n", line)
		if i == 4<<10 {
			trim(s.path(70000))
		}
	}
	p.f.WriteString("the end\n")
	trim(s.path(70000))
	p.abandon()
	var st unix.Stat_t
	if err := unix.Stat(s.path(70000), &st); err != nil || st.Blocks*512 > 2*LogLimit+64<<10 {
		t.Errorf("%d bytes kept, %v", st.Blocks*512, err)
	}
	l, err := s.Read(Caller{}, 70000, 0)
	if err != nil || l.Next != st.Size || len(l.Data) != LogLimit || !bytes.HasSuffix(l.Data, []byte("x\nthe end\n")) {
		t.Errorf("read: %v, next %d of %d, %d bytes", err, l.Next, st.Size, len(l.Data))
	}
}

func TestVersionRefused(t *testing.T) {
	r, ctx := newRig(t), testContext(t)
	c, err := r.dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.send(&message{Op: "nodes", Proto: Protocol + 1}, nil)
	if _, _, err := c.recvAnswer(); !errors.Is(err, unum.ErrVersion) {
		t.Fatalf("%v", err)
	}
}

// The question of package first, as it writes it.
func TestFirst(t *testing.T) {
	r, ctx := newRig(t), testContext(t)
	for node, want := range map[string]string{"n2": "\xa2Op\xa2ok", "n9": "\xa2Op\xa5error"} {
		c, err := r.dial(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		m := "\x83\xa2Op\xa4node\xa5Proto\x02\xa4Body\xa2" + node
		if _, err := c.uc.Write(append([]byte{0, 0, 0, byte(len(m))}, m...)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 512)
		if n, err := c.uc.Read(b); err != nil || !bytes.Contains(b[:n], []byte(want)) {
			t.Errorf("%s: %q, %v", node, b[:n], err)
		}
	}
}

func TestNoLeaks(t *testing.T) {
	r, ctx := newRig(t), testContext(t)
	count := func() int { d, _ := os.ReadDir("/proc/self/fd"); return len(d) }
	run := func() {
		io, out := stdio(t, "x")
		if _, err := r.Run(ctx, sh("cat"), io); err != nil {
			t.Fatal(err)
		}
		out()
	}
	run()
	before := count()
	for range 20 {
		run()
	}
	// The server closes its side when the client has gone.
	for count() > before {
		if ctx.Err() != nil {
			t.Fatalf("%d descriptors before, %d after", before, count())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// A daemon that dies while it starts a command, before or after it has: the
// client asks the next one, and the command runs once.
func TestRunOverDeath(t *testing.T) {
	for _, x := range []struct {
		name          string
		before, after bool
	}{{"before the start", true, false}, {"after the start", false, true}, {"again and again", true, true}} {
		t.Run(x.name, func(t *testing.T) {
			r, ctx := newRig(t), testContext(t)
			deaths := 0
			// The client's connection is closed, the next daemon listens, and this
			// one does nothing more.
			die := func(n int) func(*Command) {
				return func(cmd *Command) {
					if deaths < n {
						deaths++
						old := r.srv
						old.ln.Close()
						r.listen()
						old.cancel()
						for _, f := range cmd.Files {
							f.Close()
						}
						<-t.Context().Done()
						runtime.Goexit()
					}
				}
			}
			if x.before {
				r.b.before = die(1)
			}
			if x.after {
				r.b.after = die(2)
			}
			once := filepath.Join(r.dir, "runs")
			for _, how := range []string{"run", "detach"} {
				deaths = 0
				os.Remove(once)
				req := sh("echo x >> " + once + "; echo out; exit 3")
				if how == "run" {
					io, out := stdio(t, "")
					exit, err := r.Run(ctx, req, io)
					if got := out(); err != nil || exit.Code != 3 || got != "out\n" {
						t.Errorf("%+v %q, %v", exit, got, err)
					}
				} else {
					pid, err := r.Detach(ctx, req)
					if err != nil {
						t.Fatal(err)
					}
					var l *LogChunk
					for l == nil || !l.Ended {
						if l, err = r.Logs(ctx, pid, 0); err != nil {
							t.Fatal(err)
						}
						time.Sleep(5 * time.Millisecond)
					}
					if string(l.Data) != "out\n" || l.Status != "exit 3" {
						t.Errorf("log %q, %s", l.Data, l.Status)
					}
				}
				if b, _ := os.ReadFile(once); string(b) != "x\n" {
					t.Errorf("%s: ran %d times", how, len(b)/2)
				}
				if deaths == 0 {
					t.Error("no daemon died")
				}
			}
			if left, _ := filepath.Glob(filepath.Join(r.dir, "logs", newLog+"*")); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}
