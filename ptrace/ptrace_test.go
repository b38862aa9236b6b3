package ptrace

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/seccomp"
	"unum/seccomp/seccomptest"
	"unum/sys"
)

func TestMain(m *testing.M) {
	seccomptest.Main()
	os.Exit(m.Run())
}

const (
	cookie   = 77
	patience = 20 * time.Second
)

// rig is a program under the world's filter. handle gets the calls of number
// nr; all others are made.
type rig struct {
	*testing.T
	cmd   *exec.Cmd
	pid   int
	out   bytes.Buffer
	calls chan *seccomp.Notif
	ended chan error
}

func newRig(t *testing.T, nr uint32, argv ...string) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	filter, err := seccomp.Filter(seccomp.Params{Range: unum.RangeOf(0), Cookie: cookie})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{T: t, calls: make(chan *seccomp.Notif, 16), ended: make(chan error, 1)}
	r.cmd = exec.Command(argv[0], argv[1:]...)
	r.cmd.Stdout = &r.out
	fd, pid := seccomptest.Start(t, filter, cookie, r.cmd)
	r.pid = pid
	l, err := seccomp.NewListener(fd, t.TempDir()+"/calls", nil)
	if err != nil {
		t.Fatal(err)
	}
	go l.Serve(func(n *seccomp.Notif) {
		if n.Nr == nr {
			r.calls <- n
		} else {
			n.Continue()
		}
	})
	go func() { r.ended <- r.cmd.Wait() }()
	return r
}

func (r *rig) call() *seccomp.Notif {
	r.Helper()
	select {
	case n := <-r.calls:
		return n
	case err := <-r.ended:
		r.Fatalf("ended without the call: %v, %q", err, r.out.String())
	case <-time.After(patience):
		r.Fatal("the call did not come")
	}
	return nil
}

// wait returns what the program printed.
func (r *rig) wait() (string, error) {
	r.Helper()
	select {
	case err := <-r.ended:
		return strings.TrimSpace(r.out.String()), err
	case <-time.After(patience):
		b, _ := os.ReadFile("/proc/" + strconv.Itoa(r.pid) + "/stat")
		r.Fatalf("hangs: %s", b)
		return "", nil
	}
}

// nul finds a zero byte in the caller's memory: the end of its path.
func nul(t *testing.T, n *seccomp.Notif) uint64 {
	t.Helper()
	b := make([]byte, 64)
	got, err := sys.ReadMem(n.Tid, n.Args[0], b)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.IndexByte(b[:got], 0)
	if at < 0 {
		t.Fatal("a path without an end")
	}
	return n.Args[0] + uint64(at)
}

func onThreadOf(t *testing.T, f func() error) error {
	th := NewThread()
	defer th.Close()
	return th.Do(f)
}

// toStub makes the caller execute file.
func toStub(t *testing.T, n *seccomp.Notif, file string) (answered bool, err error) {
	t.Helper()
	stub, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer stub.Close()
	at := nul(t, n)
	err = onThreadOf(t, func() (err error) {
		answered, err = ToStub(Redirect{Notif: n, Stub: stub, Argv: n.Args[1], Nul: at, Cookie: cookie})
		return err
	})
	return answered, err
}

// The caller of an exec is made to execute another file, with its own
// arguments, no environment, and every signal blocked. Its PID stays, and
// nobody traces it any more.
func TestToStub(t *testing.T) {
	r := newRig(t, unix.SYS_EXECVE, "/bin/sh", "-c", "UNUM_TEST=1 exec /bin/echo /proc/self/status /proc/self/environ")
	answered, err := toStub(t, r.call(), "/bin/cat")
	if err != nil || !answered {
		t.Fatalf("answered %v, %v", answered, err)
	}
	out, err := r.wait()
	if err != nil {
		t.Errorf("%v: %q", err, out)
	}
	for _, want := range []string{
		"\nPid:\t" + strconv.Itoa(r.pid) + "\n",
		"\nTracerPid:\t0\n",
		"\nSigBlk:\tfffffffffffbfeff\n", // all but SIGKILL and SIGSTOP
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in what it printed:\n%s", want, out)
		}
	}
	if strings.Contains(out, "UNUM_TEST") {
		t.Error("it has an environment")
	}
}

// A signal that came while the call was trapped is kept for what follows.
func TestToStubWithSignal(t *testing.T) {
	r := newRig(t, unix.SYS_EXECVE, "/bin/sh", "-c", "trap : USR1; exec /bin/echo /proc/self/status")
	n := r.call()
	if err := unix.Kill(r.pid, unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if _, err := toStub(t, n, "/bin/cat"); err != nil {
		t.Fatal(err)
	}
	out, err := r.wait()
	if err != nil || !strings.Contains(out, "\nShdPnd:\t0000000000000200\n") {
		t.Errorf("%v:\n%s", err, out)
	}
}

// A caller that is held outlives a signal that would end it, and hands it on.
func TestHold(t *testing.T) {
	r := newRig(t, unix.SYS_EXECVE, "/bin/sh", "-c", "exec /bin/echo /proc/self/status")
	n := r.call()
	stub, err := os.Open("/bin/cat")
	if err != nil {
		t.Fatal(err)
	}
	defer stub.Close()
	at := nul(t, n)
	th := NewThread()
	defer th.Close()
	if err := th.Do(func() error { return Hold(n) }); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(r.pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err = th.Do(func() error {
		_, err := ToStub(Redirect{Notif: n, Stub: stub, Argv: n.Args[1], Nul: at, Cookie: cookie, Held: true})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	out, err := r.wait()
	if err != nil || !strings.Contains(out, "\nShdPnd:\t0000000000004000\n") {
		t.Errorf("%v:\n%s", err, out)
	}
}

// One that is let go has its answer, or issues its call again, and a signal
// that came meanwhile.
func TestLetGo(t *testing.T) {
	for _, how := range []string{"fails", "again", "again, with a signal"} {
		t.Run(how, func(t *testing.T) {
			r := newRig(t, unix.SYS_EXECVE, "/bin/sh", "-c", "exec /bin/echo hello")
			n := r.call()
			th := NewThread()
			defer th.Close()
			answer := n.Restart
			if how == "fails" {
				answer = func() { n.Errno(unix.EACCES) }
			}
			if err := th.Do(func() error { return Hold(n) }); err != nil {
				t.Fatal(err)
			}
			if how == "again, with a signal" {
				if err := unix.Kill(r.pid, unix.SIGTERM); err != nil {
					t.Fatal(err)
				}
			}
			if err := th.Do(func() error { return LetGo(n, answer) }); err != nil {
				t.Fatal(err)
			}
			if how == "again" {
				if b, err := sys.ReadTask(r.pid); err != nil || b.Tracer != 0 {
					t.Errorf("tracer %v, %v", b, err)
				}
				r.call().Continue()
			}
			out, err := r.wait()
			code := r.cmd.ProcessState.ExitCode()
			switch how {
			case "fails":
				if code != 126 {
					t.Errorf("ended with %d: %q", code, out)
				}
			case "again":
				if err != nil || out != "hello" {
					t.Errorf("printed %q, %v", out, err)
				}
			default:
				if code != 128+int(unix.SIGTERM) {
					t.Errorf("ended with %d: %q", code, out)
				}
			}
		})
	}
}

// The parent hears of the death of one that is held when it is reaped.
func TestReap(t *testing.T) {
	r := newRig(t, unix.SYS_EXECVE, "/bin/sh", "-c", "exec /bin/echo hello")
	n := r.call()
	th := NewThread()
	defer th.Close()
	if err := th.Do(func() error { return Hold(n) }); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(r.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the zombie", func() bool {
		b, err := sys.ReadTask(r.pid)
		return err == nil && b.State == 'Z'
	})
	select {
	case err := <-r.ended:
		t.Fatalf("the parent knew already: %v", err)
	default:
	}
	th.Do(func() error { Reap(n.Tid); return nil })
	r.wait()
	if c := r.cmd.ProcessState.ExitCode(); c != 128+int(unix.SIGKILL) {
		t.Errorf("ended with %d", c)
	}
}

// A caller that is killed while it stands stopped is reported to its parent.
func TestKilledInItsStop(t *testing.T) {
	r := newRig(t, unix.SYS_EXECVE, "/bin/sh", "-c", "/bin/sleep 1000; echo $?")
	n := r.call()
	th := NewThread()
	defer th.Close() // only when the parent has heard: the thread's end tells it too
	err := th.Do(func() error {
		if err := Hold(n); err != nil {
			return err
		}
		if err := unix.PtraceInterrupt(n.Tid); err != nil {
			return err
		}
		n.Restart()
		if err := waitStop(n.Tid); err != nil {
			return err
		}
		if err := unix.Kill(n.Tid, unix.SIGKILL); err != nil {
			return err
		}
		waitFor(t, "the end", func() bool { return !alive(n.Tid) })
		if err := free(n.Tid); !errors.Is(err, unix.ESRCH) {
			t.Errorf("free: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := r.wait(); err != nil || out != "137" {
		t.Errorf("its parent saw %q, %v", out, err)
	}
}

func alive(pid int) bool {
	t, err := sys.ReadTask(pid)
	return err == nil && t.State != 'Z'
}

// A caller that is traced already keeps its tracer, and its call is the
// owner's to answer.
func TestToStubOfTraced(t *testing.T) {
	r := newRig(t, unix.SYS_EXECVE, "/bin/sh", "-c", "exec /bin/echo hello")
	n := r.call()
	other := NewThread()
	if err := other.Do(func() error { return seize(n.Tid) }); err != nil {
		t.Fatal(err)
	}
	if answered, err := toStub(t, n, "/bin/cat"); answered || err == nil {
		t.Errorf("answered %v, %v", answered, err)
	}
	other.Close() // with the thread goes its hold
	n.Continue()
	if out, err := r.wait(); out != "hello" || err != nil {
		t.Errorf("printed %q, %v", out, err)
	}
}

// A caller that dies under the hands.
func TestToStubOfDead(t *testing.T) {
	r := newRig(t, unix.SYS_EXECVE, "/bin/sh", "-c", "exec /bin/echo hello")
	n := r.call()
	at := nul(t, n)
	if err := unix.Kill(r.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.wait()
	err := onThreadOf(t, func() error {
		_, err := ToStub(Redirect{Notif: n, Stub: os.Stdin, Argv: n.Args[1], Nul: at, Cookie: cookie})
		return err
	})
	if !errors.Is(err, unix.ESRCH) {
		t.Errorf("%v", err)
	}
}

// Finish runs between the call and its caller's next step: what it writes to
// the caller's memory is what the caller reads.
func TestFinish(t *testing.T) {
	r := newRig(t, unix.SYS_TIMES, "/usr/bin/perl", "-e", "my @t = times; print $t[2]")
	n := r.call()
	var ret int64
	taken, err := Finish(n, func(v int64) {
		ret = v
		// tms_cutime, in clock ticks.
		b := []byte{0x39, 0x30, 0, 0, 0, 0, 0, 0} // 12345
		if err := sys.WriteMem(n.Tid, sys.Piece{Addr: n.Args[0] + 16, Data: b}); err != nil {
			t.Error(err)
		}
	})
	if errors.Is(err, ErrNoFollow) {
		n.Continue()
		t.Skip(err)
	}
	if !taken || err != nil || ret <= 0 {
		t.Fatalf("taken %v, %v; the call returned %d", taken, err, ret)
	}
	if out, err := r.wait(); out != "123.45" || err != nil {
		t.Errorf("the caller saw %q, %v", out, err)
	}
}

// A signal that ends the wait in the midst of the call is the caller's, which
// asks again; nothing was done in between.
func TestFinishInterrupted(t *testing.T) {
	script := `use POSIX; $SIG{USR1} = sub { print "signal "; kill 9, $child };
$child = fork // die; if (!$child) { POSIX::pause(); POSIX::pause() while 1 }
$| = 1; syscall(61, $child, 0, 0, my $usage = "\0" x 144); print "end"`
	r := newRig(t, unix.SYS_WAIT4, "/usr/bin/perl", "-e", script)
	n := r.call()
	began := make(chan bool)
	type end struct {
		taken bool
		err   error
		then  bool
	}
	ended := make(chan end, 1)
	go func() {
		close(began)
		var e end
		e.taken, e.err = Finish(n, func(int64) { e.then = true })
		ended <- e
	}()
	<-began
	// It waits in the kernel when its filters are suspended.
	waitFor(t, "the caller to wait", func() bool {
		b, err := sys.ReadProc("/proc/" + strconv.Itoa(n.Tid) + "/wchan")
		return err == nil && strings.Contains(string(b), "do_wait")
	})
	if err := unix.Kill(n.Tid, unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	select {
	case e := <-ended:
		if errors.Is(e.err, ErrNoFollow) {
			t.Skip(e.err)
		}
		if !e.taken || e.err != nil || e.then {
			t.Errorf("%+v", e)
		}
	case <-time.After(patience):
		t.Fatal("Finish hangs")
	}
	// perl's handlers run between its own steps; SA_RESTART is not set, so the
	// call ends with EINTR, or is issued again.
	select {
	case n := <-r.calls:
		n.Continue()
	case err := <-r.ended:
		r.ended <- err
	case <-time.After(patience):
		t.Fatal("the caller hangs")
	}
	if out, err := r.wait(); out != "signal end" || err != nil {
		t.Errorf("printed %q, %v", out, err)
	}
}

// Reissue brings a call that blocks in the kernel back to the filter.
func TestReissue(t *testing.T) {
	script := `$child = fork // die; if (!$child) { close STDOUT; sleep 1000 }
$| = 1; print "$child\n"; syscall(61, $child, 0, 0, my $usage = "\0" x 144); print "end"`
	r := newRig(t, unix.SYS_WAIT4, "/usr/bin/perl", "-e", script)
	n := r.call()
	child := int(n.Args[0])
	n.Continue()
	waitFor(t, "the caller to wait", func() bool {
		b, err := sys.ReadProc("/proc/" + strconv.Itoa(n.Tid) + "/wchan")
		return err == nil && strings.Contains(string(b), "do_wait")
	})
	if err := Reissue(n.Tid); err != nil {
		t.Fatal(err)
	}
	again := r.call()
	if again.Tid != n.Tid || again.Args != n.Args || again.ID == n.ID {
		t.Errorf("first %+v, again %+v", n, again)
	}
	if err := unix.Kill(child, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	again.Continue()
	if out, err := r.wait(); !strings.HasSuffix(out, "end") || err != nil {
		t.Errorf("printed %q, %v", out, err)
	}
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// The main thread, which Go does not end, is nobody's.
func TestNotTheMainThread(t *testing.T) {
	for range 2000 {
		tid := make(chan int)
		goOnThread(func() { tid <- unix.Gettid() })
		if <-tid == unix.Getpid() {
			t.Fatal("on the main thread")
		}
	}
}
