package rexec

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
	"unum/deputy"
	"unum/sys"
)

// maker makes processes of this node's world out of stubs.
type maker struct {
	reg    *deputy.Registry
	cookie uint64
	root   *deputy.Stub // forks agents and session leaders
	mount  func(context.Context) (*os.File, error)
	limits [16]unix.Rlimit // of agents
	caps   *sys.Task       // credentials of agents
	ioprio int             // of agents
}

func newMaker(reg *deputy.Registry, cookie uint64, root *deputy.Stub) (*maker, error) {
	m := &maker{reg: reg, cookie: cookie, root: root}
	var err error
	if m.limits, err = sys.ReadLimits(root.HostPid); err != nil {
		return nil, err
	}
	if m.caps, err = sys.ReadTask(root.HostPid); err != nil {
		return nil, err
	}
	if m.ioprio, err = sys.IOPrio(root.HostPid); err != nil {
		return nil, err
	}
	return m, nil
}

// errBusy says that the wanted PID is taken on this node.
var errBusy = errors.New("its number is taken on that node")

// fork makes a child stub of agent, with PID pid unless 0. turn, if not nil, is
// called when all that the agent was asked before is done, and the fork is not.
func (m *maker) fork(ctx context.Context, agent *deputy.Stub, pid unum.Pid, turn func(), first ...deputy.First) (*deputy.Stub, error) {
	var hello <-chan *deputy.Stub
	var cancel func()
	var err error
	if pid != 0 {
		hello, cancel, err = m.reg.Expect(pid, first...)
	} else {
		hello, cancel, err = m.reg.ExpectChild(agent.HostPid, first...)
	}
	if err != nil {
		return nil, err
	}
	defer cancel()
	type answer struct {
		res *deputy.Result
		err error
	}
	forked := make(chan answer, 1)
	err = agent.Begin(deputy.First{
		Prog: forkProgram(int32(pid)),
		Skip: func() bool {
			if turn != nil {
				turn()
			}
			return false
		},
		Done: func(res *deputy.Result, err error) { forked <- answer{res, err} },
	})
	if err != nil {
		return nil, err
	}
	var a answer
	select {
	case a = <-forked:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if a.err != nil {
		return nil, a.err
	}
	if _, err := a.res.Err(); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("fork %d: %w", pid, errBusy)
		}
		return nil, fmt.Errorf("fork %d: %w", pid, err)
	}
	select {
	case s := <-hello:
		return s, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// agent makes a stub that stays: a session's agent, or a group's holder.
func (m *maker) agent(ctx context.Context, from *deputy.Stub, pid unum.Pid, session, group bool, tty *os.File) (*deputy.Stub, error) {
	num := -1
	var inject []deputy.Injection
	if tty != nil {
		num = 0
		inject = []deputy.Injection{{File: tty, Num: 0}}
	}
	done := make(chan error, 1)
	s, err := m.fork(ctx, from, pid, nil, deputy.First{
		Inject: inject,
		Prog:   agentProgram(session, group, num, m.cookie),
		Done: func(r *deputy.Result, err error) {
			if err == nil {
				var at int
				if at, err = r.Err(); err != nil {
					err = fmt.Errorf("agent's call %d: %w", at, err)
				}
			}
			done <- err
		},
	})
	if err != nil {
		return nil, err
	}
	if err := <-done; err != nil {
		s.Kill()
		return nil, err
	}
	s.OnSignal(nil) // until it has somebody who wants to know
	return s, nil
}

// execError is the failure of the exec itself; the process that tried is gone.
type execError struct{ errno unix.Errno }

func (e *execError) Error() string { return "exec: " + e.errno.Error() }
func (e *execError) Unwrap() error { return e.errno }

// birth is a process to be made.
type birth struct {
	spec   *Spec
	parent *deputy.Stub // forks it
	holder *deputy.Stub // instead: already has the PID, and becomes the process
	locals []local
	turn   func() // called right before the fork; may be nil
	// undo is told who is killed since its program failed, before; may be nil.
	undo func(unum.Pid)
}

// local is one descriptor of a birth.
type local struct {
	carry.Local
	nums    []int
	cloexec bool
}

// make makes the process. It returns once its exec has succeeded, with the
// stub's handle, which is then only good for its end and its pidfd.
func (m *maker) make(ctx context.Context, b *birth) (*deputy.Stub, error) {
	above := 16
	for _, l := range b.locals {
		for _, n := range l.nums {
			if !l.cloexec {
				above = max(above, n+1)
			}
		}
	}
	var inject []deputy.Injection
	var opens []open
	share := false
	for _, l := range b.locals {
		if l.Open != nil {
			opens = append(opens, open{OpenAt: *l.Open, nums: l.nums, above: above})
			share = share || l.Open.Share
			continue
		}
		for _, n := range l.nums {
			inject = append(inject, deputy.Injection{File: l.File, Num: n, Cloexec: l.cloexec})
		}
	}
	if share {
		mount, err := m.mount(ctx)
		if err != nil {
			return nil, fmt.Errorf("the private mount: %w", err)
		}
		defer mount.Close()
		inject = append(inject, deputy.Injection{File: mount, Num: mountNum, Cloexec: true})
	}
	// The kernel closes the write end when the exec succeeds.
	r, w, err := readyPipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	inject = append(inject, deputy.Injection{File: w, Num: mountNum + 1, Cloexec: true})
	prog := m.bodyProgram(b.spec, opens)
	failed := make(chan error, 1)
	given := make(chan struct{})
	first := deputy.First{
		Inject: inject,
		// The stub has its copy, or never will: ours must not keep the pipe open.
		Given: func() { w.Close(); close(given) },
		Prog:  prog,
		Done: func(res *deputy.Result, err error) {
			if err == nil {
				at, e := res.Err()
				err = fmt.Errorf("call %d: %w", at, e)
				if at == prog.Len()-1 {
					if no, ok := e.(unix.Errno); ok {
						err = &execError{no}
					}
				}
			}
			failed <- err
			r.Close()
		},
	}
	var s *deputy.Stub
	if b.holder != nil {
		s = b.holder
		if err := s.Begin(first); err != nil {
			w.Close()
			return nil, err
		}
	} else if s, err = m.fork(ctx, b.parent, b.spec.Pid, b.turn, first); err != nil {
		w.Close()
		return nil, err
	}
	select {
	case <-given:
	case <-s.Gone(): // killed before it was given anything
		w.Close()
	}
	var one [1]byte
	r.Read(one[:]) // ends when the exec succeeded, the process is gone, or the program failed
	select {
	case err := <-failed:
		// Gone: it was fast, or killed. Either way it is its parent that learns
		// how it ended.
		if !errors.Is(err, deputy.ErrGone) {
			if b.undo != nil {
				b.undo(s.Pid)
			}
			return nil, m.undo(s, err)
		}
	default:
	}
	m.reg.Forget(s)
	return s, nil
}

// readyPipe is os.Pipe whose write end is not in the netpoller: nobody here
// writes.
func readyPipe() (r, w *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	if err := unix.SetNonblock(p[0], true); err != nil {
		unix.Close(p[0])
		unix.Close(p[1])
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(p[0]), "ready"), os.NewFile(uintptr(p[1]), "ready"), nil
}

// undo ends a newborn whose program failed and waits until it is gone, so that
// its PID can be used again: a search of PATH tries at once.
func (m *maker) undo(s *deputy.Stub, err error) error {
	s.Kill()
	<-s.Gone()
	return err
}

// StubName is the name that the stub's memfd is made with; /proc shows it.
const StubName = "unum-deputy"
