package fsnode

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry/file"
)

// kill ends the file server as a crash does, and starts another one.
func (p *pair) kill() {
	p.t.Helper()
	p.fsproc.Process.Kill()
	p.fsproc.Wait()
	p.startServer()
}

// waitBegun waits until the file server has a request that it has not answered.
func (p *pair) waitBegun() {
	p.t.Helper()
	tab, err := openTable(p.mount.Memory)
	if err != nil {
		p.t.Fatal(err)
	}
	defer tab.close()
	waitFor(p.t, func() bool {
		return slices.ContainsFunc(tab.head.Unanswered[:], func(u unanswered) bool { return u.Unique != 0 })
	})
}

const counter = `import os,sys,time
for i in range(int(sys.argv[1])):
    b=b"%06d\n"%i
    if os.write(1,b)!=7: sys.exit(9)
`

func checkCount(t *testing.T, f *os.File, n int) {
	t.Helper()
	var want strings.Builder
	for i := range n {
		fmt.Fprintf(&want, "%06d\n", i)
	}
	got := content(t, f)
	if got == want.String() {
		return
	}
	lines := strings.Split(got, "\n")
	for i, l := range lines {
		if l != fmt.Sprintf("%06d", i) {
			t.Fatalf("line %d of %d is %q", i, len(lines), l)
		}
	}
	t.Fatalf("%d bytes, want %d", len(got), want.Len())
}

// The file server is killed again and again under a writing body.
func TestServerKilledUnderWriter(t *testing.T) {
	for name, flags := range map[string]int{">": os.O_RDWR, ">>": os.O_RDWR | os.O_APPEND} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			f := temp(t, flags, "")
			const n = 5000
			wait := p.start(nil, f, "python3", "-ISc", counter, fmt.Sprint(n))
			done := make(chan error, 1)
			go func() { done <- wait() }()
			kills := 0
			for {
				select {
				case err := <-done:
					if err != nil {
						t.Fatal(err)
					}
					t.Logf("%d kills", kills)
					checkCount(t, f, n)
					return
				case <-time.After(time.Duration(20+kills*7%30) * time.Millisecond):
					if kills < 15 {
						p.kill()
						kills++
					}
				}
			}
		})
	}
}

// The guest's daemon is restarted again and again under a writing body.
func TestGuestRestartedUnderWriter(t *testing.T) {
	p := newPair(t)
	f := temp(t, os.O_RDWR, "")
	const n = 5000
	c := p.carry(f)
	cmd := command(t, "python3", "-ISc", counter, fmt.Sprint(n))
	cmd.Stdout = c.file
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.started()
	for range 15 {
		time.Sleep(20 * time.Millisecond)
		p.restartGuest(c)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	c.ended()
	checkCount(t, f, n)
}

// A body that waits in a pipe, one that waits for a lock, and an idle one
// live through the death of the file server.
func TestServerKilledUnderWaiters(t *testing.T) {
	p := newPair(t)
	r, w := pipe(t)
	out := temp(t, os.O_RDWR|os.O_APPEND, "")
	lock := temp(t, os.O_RDWR, "")
	other, err := os.OpenFile(lock.Name(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	unix.Flock(int(other.Fd()), unix.LOCK_EX)
	reader := p.start(r, out, "sh", "-c", "read a; echo reader $a; read b; echo reader $b")
	locker := p.start(lock, out, "python3", "-ISc", "import fcntl; fcntl.flock(0,fcntl.LOCK_EX); import os; os.write(1,b'locker\\n')")
	idle := p.start(nil, out, "sh", "-c", "sleep 0.7; echo idle")
	time.Sleep(300 * time.Millisecond)
	p.kill()
	w.WriteString("one\n")
	waitFor(t, func() bool { return strings.Contains(content(t, out), "reader one\n") })
	p.kill()
	unix.Flock(int(other.Fd()), unix.LOCK_UN)
	w.WriteString("two\n")
	for _, wait := range []func() error{reader, locker, idle} {
		if err := wait(); err != nil {
			t.Error(err)
		}
	}
	for _, want := range []string{"reader two\n", "locker\n", "idle\n"} {
		if !strings.Contains(content(t, out), want) {
			t.Errorf("%q is missing in %q", want, content(t, out))
		}
	}
}

// A close while nobody serves reaches home afterwards.
func TestClosedWhileServerIsDead(t *testing.T) {
	p := newPair(t)
	r, w := pipe(t)
	c := p.carry(r)
	cmd := command(t, "sleep", "0.2")
	cmd.Stdin = c.file
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.started()
	p.fsproc.Process.Kill()
	p.fsproc.Wait()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	if _, err := w.WriteString("x"); err != nil {
		t.Errorf("home closed the pipe too early: %v", err)
	}
	p.startServer()
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	if err := c.guest.Flush(ctx, true); err != nil {
		t.Fatal(err)
	}
	c.ended()
	if _, err := w.WriteString("x"); err == nil {
		t.Error("the pipe still has a reader")
	}
}

// Where the kernel cannot send requests again, what waited fails, and what
// comes later works.
func TestServerKilledOnOldKernel(t *testing.T) {
	t.Setenv(resendEnv, "1")
	p := newPair(t)
	r, w := pipe(t)
	out := temp(t, os.O_RDWR|os.O_APPEND, "")
	in, o := p.carry(r), p.carry(out)
	cmd := command(t, "python3", "-ISc", `import os
try: os.read(0,1)
except OSError as e: os.write(1,b"error %d\n"%e.errno)
os.write(1,os.read(0,1))
`)
	cmd.Stdin, cmd.Stdout = in.file, o.file
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.started()
	o.started()
	waitBlocked(t, cmd.Process.Pid, 0)
	p.waitBegun() // one that was not is left to the next server
	p.kill()
	waitFor(t, func() bool { return content(t, out) == "error 5\n" })
	w.WriteString("x")
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	in.ended()
	o.ended()
	if got := content(t, out); got != "error 5\nx" {
		t.Errorf("got %q", got)
	}
}

// The position that a body leaves without a read or write is handed on also
// when its node's daemon was restarted meanwhile.
func TestPositionAfterGuestRestart(t *testing.T) {
	p := newPair(t)
	f := temp(t, os.O_RDONLY, "0123456789")
	r, w := pipe(t)
	c := p.carry(f)
	n := int(f.Fd()) // a body has it under the caller's number
	cmd := command(t, "python3", "-ISc", fmt.Sprintf("import os; os.read(0,1); os.read(%d,2); os.lseek(%d,7,0)", n, n))
	cmd.Stdin, cmd.ExtraFiles = r, append(make([]*os.File, n-3), c.file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.started()
	c.pl.Pid = unum.Pid(cmd.Process.Pid)
	p.restartGuest(c)
	w.WriteString("x")
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	c.ended()
	if pos, _ := f.Seek(0, 1); pos != 7 {
		t.Errorf("position at home %d, want 7", pos)
	}
}

// A process can be killed in the middle of a call that nobody answers.
func TestKilledWhileHomeIsSilent(t *testing.T) {
	p := newPair(t)
	f := temp(t, os.O_RDWR, "")
	c := p.carry(f)
	cmd := command(t, "python3", "-ISc", "import os; os.read(0,1); os.write(1,b'x')")
	r, w := pipe(t)
	cmd.Stdin, cmd.Stdout = r, c.file
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.started()
	silent, heard := make(chan struct{}), make(chan struct{})
	n := p.nodes["n1"]
	n.mu.Lock()
	handle := n.handlers["carry.file.op"]
	var once sync.Once
	n.handlers["carry.file.op"] = func(ctx context.Context, from unum.NodeID, req []byte) ([]byte, error) {
		once.Do(func() { close(heard) })
		<-silent
		return handle(ctx, from, req)
	}
	n.mu.Unlock()
	w.WriteString("x")
	<-heard
	began := time.Now()
	cmd.Process.Kill()
	cmd.Wait()
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
	close(silent)
	c.ended()
}

// A process that is killed in a call whose file server is dead, and whose
// daemon too, ends as soon as there is a file server: a killed daemon may be
// such a process, and the next one waits for its end.
func TestKilledWithoutDaemon(t *testing.T) {
	p := newPair(t)
	r, _ := pipe(t)
	c := p.carry(r)
	cmd := command(t, "cat")
	cmd.Stdin = c.file
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.started()
	waitBlocked(t, cmd.Process.Pid, 0)
	p.waitBegun()
	p.fsproc.Process.Kill()
	p.fsproc.Wait()
	p.kinds["n2"].Close()
	p.fs.Close()
	cmd.Process.Kill()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	p.startServer()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("it lives on")
	}
	p.fs = file.NewFS(file.FSConfig{Socket: file.SocketPath(p.dir), Peer: p.peer("n2")})
	p.startKinds("n2")
	g, err := p.kinds["n2"].All()[c.kind].ResumeGuest(context.Background(), c.pl, c.d)
	if err != nil {
		t.Fatal(err)
	}
	c.guest = g
	c.ended()
}

// A daemon looks at what its predecessor had kept before it can serve anybody:
// what it asks of a kept file of the mount waits for no file server, and a file
// server would wait for the daemon.
func TestKeptDescriptorsWithoutServer(t *testing.T) {
	p := newPair(t)
	c := p.carry(temp(t, os.O_RDWR, ""))
	var before unix.Stat_t
	if err := unix.Fstat(int(c.file.Fd()), &before); err != nil {
		t.Fatal(err)
	}
	p.fsproc.Process.Kill()
	p.fsproc.Wait()
	done := make(chan error, 1)
	go func() {
		var st unix.Statx_t
		err := unix.Statx(int(c.file.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st)
		if err == nil && (st.Ino != before.Ino || unix.Mkdev(st.Dev_major, st.Dev_minor) != before.Dev) {
			err = fmt.Errorf("it is another file: %d of %d:%d", st.Ino, st.Dev_major, st.Dev_minor)
		}
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("statx waits for the file server")
	}
	p.startServer()
	c.started()
	c.ended()
}

// What was opened and closed is not opened again: home knows, or will, that it
// is closed, and who then wrote would be told so in the midst of it.
func TestOpenedAgainAfterClose(t *testing.T) {
	p := newPair(t)
	c := p.carry(temp(t, os.O_RDWR, ""))
	silent, n := make(chan struct{}), p.nodes["n1"]
	n.mu.Lock()
	handle := n.handlers["carry.file.op"]
	n.handlers["carry.file.op"] = func(ctx context.Context, from unum.NodeID, req []byte) ([]byte, error) {
		<-silent // the release is under way
		return handle(ctx, from, req)
	}
	n.mu.Unlock()
	c.guest.Started(false) // closes what it holds
	c.file.Close()
	time.AfterFunc(100*time.Millisecond, func() { close(silent) })
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	if g, err := p.kinds["n2"].All()[c.kind].Land(ctx, c.pl, c.d); err == nil {
		g.Close()
		t.Error("it was opened again")
	}
}
