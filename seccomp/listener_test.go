package seccomp

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/seccomp/seccomptest"
)

func TestMain(m *testing.M) {
	seccomptest.Main()
	os.Exit(m.Run())
}

const patience = 20 * time.Second

// rig is a shell under the filter, and its listener.
type rig struct {
	*testing.T
	fd      *os.File
	journal string
	out     bytes.Buffer
	ended   chan error
	pid     int
}

func newRig(t *testing.T, script string) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	r := &rig{T: t, journal: filepath.Join(t.TempDir(), "calls"), ended: make(chan error, 1)}
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Stdout = &r.out
	r.fd, r.pid = seccomptest.Start(t, testFilter(t), testCookie, cmd)
	t.Cleanup(func() { r.fd.Close() })
	go func() { r.ended <- cmd.Wait() }()
	return r
}

// listen makes a listener of a duplicate, as a daemon that has just started
// does, and serves it.
func (r *rig) listen(handle func(*Notif)) (l *Listener, served chan error) {
	r.Helper()
	fd, err := unix.Dup(int(r.fd.Fd()))
	if err != nil {
		r.Fatal(err)
	}
	if l, err = NewListener(os.NewFile(uintptr(fd), "listener"), r.journal, nil); err != nil {
		r.Fatal(err)
	}
	served = make(chan error, 1)
	go func() {
		served <- l.Serve(func(n *Notif) {
			if n.Nr == unix.SYS_KILL {
				handle(n)
			} else {
				n.Continue() // shells ask for their parent, say
			}
		})
	}()
	return l, served
}

func (r *rig) wait() string {
	r.Helper()
	select {
	case <-r.ended:
	case <-time.After(patience):
		r.Fatalf("the shell hangs; it printed %q", r.out.String())
	}
	return strings.TrimSpace(r.out.String())
}

func get[T any](t *testing.T, what string, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(patience):
		t.Fatalf("%s: nothing came", what)
	}
	return v
}

// A PID of another node, so that kill is trapped.
var elsewhere = strconv.Itoa(int(unum.RangeOf(0).First) + 5)

func TestAnswers(t *testing.T) {
	r := newRig(t, `for i in 1 2 3; do kill -0 `+elsewhere+` 2>/dev/null; echo $?; done`)
	i := 0
	_, served := r.listen(func(n *Notif) {
		if n.Tid != r.pid || strconv.Itoa(int(n.Args[0])) != elsewhere || !n.Valid() || n.Again {
			t.Errorf("call %+v of %d", n, r.pid)
		}
		switch i++; i {
		case 1:
			n.Return(0)
		case 2:
			n.Errno(unix.EPERM)
		default:
			n.Continue() // there is no such process
		}
	})
	if got := r.wait(); got != "0\n1\n1" {
		t.Errorf("the shell printed %q", got)
	}
	if err := get(t, "the end of Serve", served); err != ErrWorldGone {
		t.Errorf("Serve: %v", err)
	}
}

// What one daemon received and did not answer is told to the next one, once,
// and that one's answer works.
func TestJournal(t *testing.T) {
	r := newRig(t, "kill -0 "+elsewhere+"; echo $?; kill -0 "+elsewhere+"; echo $?")
	got := make(chan *Notif, 10)
	handle := func(n *Notif) { got <- n }
	l, _ := r.listen(handle)
	first := get(t, "the call", got)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l2, _ := r.listen(handle)
	again := get(t, "the call again", got)
	if !again.Again || again.ID != first.ID || again.Tid != first.Tid || again.Args != first.Args || !again.Valid() {
		t.Errorf("first %+v, again %+v", first, again)
	}
	again.Return(0)
	next := get(t, "the next call", got)
	if next.Again || next.ID == first.ID {
		t.Errorf("next %+v", next)
	}
	if err := l2.Close(); err != nil {
		t.Fatal(err)
	}
	l3, _ := r.listen(handle)
	again = get(t, "the next call again", got)
	if !again.Again || again.ID != next.ID {
		t.Errorf("third daemon got %+v, want %+v", again, next)
	}
	again.Errno(unix.EPERM)
	if out := r.wait(); !strings.HasPrefix(out, "0\n") || !strings.HasSuffix(out, "1") {
		t.Errorf("the shell printed %q", out)
	}
	if n := l3.slots.pending(l3); len(n) != 0 {
		t.Errorf("the journal still has %d calls", len(n))
	}
}

// A caller that died while no daemon was there leaves nothing in the journal.
func TestJournalOfTheDead(t *testing.T) {
	r := newRig(t, "kill -0 "+elsewhere)
	got := make(chan *Notif, 10)
	handle := func(n *Notif) { got <- n }
	l, _ := r.listen(handle)
	get(t, "the call", got)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(r.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.wait()
	l, served := r.listen(handle)
	if err := get(t, "the end of Serve", served); err != ErrWorldGone {
		t.Errorf("Serve: %v", err)
	}
	select {
	case n := <-got:
		t.Errorf("told of %+v", n)
	default:
	}
	if n := l.slots.pending(l); len(n) != 0 {
		t.Errorf("the journal still has %d calls", len(n))
	}
}

// A descriptor given with the answer is the caller's.
func TestAddFD(t *testing.T) {
	r := newRig(t, "kill -0 "+elsewhere+"; cat <&7")
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	r.listen(func(n *Notif) {
		go func() {
			defer out.Close()
			if num, err := n.AddFD(in, 7, false); err != nil || num != 7 {
				t.Errorf("AddFD: %d, %v", num, err)
			}
			n.Return(0)
			out.WriteString("given")
		}()
	})
	if got := r.wait(); got != "given" {
		t.Errorf("the shell printed %q", got)
	}
}
