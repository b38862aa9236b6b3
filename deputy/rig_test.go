package deputy

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/seccomp"
	"unum/seccomp/seccomptest"
)

func TestMain(m *testing.M) {
	seccomptest.Main()
	os.Exit(m.Run())
}

const (
	cookie   = 77
	patience = 20 * time.Second
)

// rig is one stub, running outside of any world, and the daemon's side of it,
// which can be exchanged as if the daemon had died.
type rig struct {
	*testing.T
	ctx     context.Context
	fd      *os.File // the listener
	journal string
	pid     int
	stub    *Stub

	reg *Registry
	l   *seccomp.Listener
}

func newRig(t *testing.T) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	filter, err := seccomp.Filter(seccomp.Params{Range: unum.RangeOf(0), Cookie: cookie})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	elf := filepath.Join(dir, "stub")
	if err := os.WriteFile(elf, ELF(), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	r := &rig{T: t, ctx: ctx, journal: filepath.Join(dir, "calls")}
	cmd := exec.Command(elf)
	r.fd, r.pid = seccomptest.Start(t, filter, cookie, cmd)
	t.Cleanup(func() { r.fd.Close() })
	r.daemon()
	born, _, err := r.reg.ExpectConverted(r.pid)
	if err != nil {
		t.Fatal(err)
	}
	r.serve()
	r.stub = r.await(born)
	return r
}

// daemon makes a new registry and listener; what the one before knew is gone.
func (r *rig) daemon() {
	r.Helper()
	fd, err := unix.Dup(int(r.fd.Fd()))
	if err != nil {
		r.Fatal(err)
	}
	if r.l, err = seccomp.NewListener(os.NewFile(uintptr(fd), "listener"), r.journal, nil); err != nil {
		r.Fatal(err)
	}
	r.reg = NewRegistry(nil)
}

func (r *rig) serve() {
	l, reg := r.l, r.reg
	go l.Serve(func(n *seccomp.Notif) {
		if n.Nr != seccomp.PRIV || !reg.Handle(n) {
			n.Continue()
		}
	})
}

// die ends what stands for the daemon, leaving its calls unanswered.
func (r *rig) die() {
	r.Helper()
	if err := r.l.Close(); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) await(ch <-chan *Stub) *Stub {
	r.Helper()
	select {
	case s := <-ch:
		return s
	case <-r.ctx.Done():
		r.Fatal("the stub did not say hello")
		return nil
	}
}

func (r *rig) run(s *Stub, p *Program) *Result {
	r.Helper()
	res, err := s.Run(r.ctx, p)
	if err != nil {
		r.Fatal(err)
	}
	return res
}

func await[T any](t *testing.T, what string, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(patience):
		t.Fatalf("%s: nothing came", what)
	}
	return v
}
