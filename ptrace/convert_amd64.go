// Package ptrace stops a process at a trapped call and changes what it does
// next. All ptrace calls about a process are made by one locked OS thread.
package ptrace

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"unum/seccomp"
)

// Thread is an OS thread that traces. A traced process belongs to the thread
// that seized it, so whatever is done to it goes through one Do.
type Thread struct {
	work chan func()
	wg   sync.WaitGroup
}

// NewThread starts one.
func NewThread() *Thread {
	t := &Thread{work: make(chan func())}
	t.wg.Add(1)
	// If the thread is abandoned with a tracee, it dies and the kernel detaches.
	goOnThread(func() {
		defer t.wg.Done()
		for f := range t.work {
			f()
		}
	})
	return t
}

// Do runs f on the thread and waits for it.
func (t *Thread) Do(f func() error) error { return <-t.Begin(f) }

// Begin is Do that does not wait; what f returns comes by the channel.
func (t *Thread) Begin(f func() error) <-chan error {
	ch := make(chan error, 1)
	t.work <- func() { ch <- f() }
	return ch
}

// Close ends the thread.
func (t *Thread) Close() {
	close(t.work)
	t.wg.Wait()
}

// Redirect is the exec that a caller is made to do instead of its own.
type Redirect struct {
	Notif  *seccomp.Notif // its execve or execveat, not yet answered
	Stub   *os.File       // sealed executable, given to the caller
	Argv   uint64         // the caller's own argument vector
	Nul    uint64         // address of a zero byte in the caller's memory
	Cookie uint64         // lets the exec through the filter
	Held   bool           // Hold was called
}

// Hold seizes the caller of a trapped call, which may go on waiting. From then
// on a signal whose default is to end it stays pending, as the kernel decides
// about the signals of a tracee only when it runs; but for SIGKILL. ToStub or
// LetGo must follow, or Reap if it is killed. It must run on a Thread.
func Hold(n *seccomp.Notif) error {
	if err := seize(n.Tid); err != nil {
		return fmt.Errorf("seize %d: %w", n.Tid, err)
	}
	return nil
}

// LetGo ends a hold; answer answers the call, and must not make it be made,
// which may take long (Restart is an answer). It must run on the Thread of
// Hold.
func LetGo(n *seccomp.Notif, answer func()) error {
	err := unix.PtraceInterrupt(n.Tid)
	answer()
	if e := waitStop(n.Tid); e != nil {
		return fmt.Errorf("%w: %w", ErrNotStopped, e)
	}
	return errors.Join(err, free(n.Tid))
}

// free detaches a stopped tracee. One that was killed in its stop cannot be
// detached, and its parent is not told before its tracer has taken notice.
func free(tid int) error {
	err := unix.PtraceDetach(tid)
	if err == nil {
		return nil
	}
	if err == unix.ESRCH {
		ReapKilled(tid)
	}
	return fmt.Errorf("detach %d: %w", tid, err)
}

// Reap takes notice of the end of a caller that is held: before its tracer
// has, its parent is not told. It must run on the Thread of Hold.
func Reap(tid int) {
	unix.Wait4(tid, nil, unix.WALL|unix.WNOHANG, nil)
}

// ReapKilled is Reap for a caller that was sent SIGKILL; it waits for the end.
func ReapKilled(tid int) {
	for {
		if _, err := unix.Wait4(tid, nil, unix.WALL, nil); err != unix.EINTR {
			return
		}
	}
}

// ErrNotStopped says that the caller was gone or could not be stopped; its call
// was not answered, or issued again.
var ErrNotStopped = errors.New("the caller could not be stopped")

// ToStub makes the caller of a trapped exec execute the stub, with its own
// arguments and no environment, all signals blocked. Nothing is written to its
// memory. If it cannot be seized, the notification is still the owner's to answer
// (answered false); after any other failure the caller issues its own exec again.
//
// It must run on a Thread. Kernel: PTRACE_SEIZE 3.4, PTRACE_SETSIGMASK 3.11.
func ToStub(r Redirect) (answered bool, err error) {
	tid := r.Notif.Tid
	if !r.Held {
		if err := Hold(r.Notif); err != nil {
			return false, err
		}
	}
	fd, err := r.Notif.AddFD(r.Stub, -1, true)
	if err != nil {
		// It is not stopped, so it cannot be detached; let it run into the
		// interrupt, and issue its call again.
		err = fmt.Errorf("give the stub to %d: %w", tid, err)
	}
	if e := unix.PtraceInterrupt(tid); e != nil && err == nil {
		err = fmt.Errorf("interrupt %d: %w", tid, e)
	}
	r.Notif.Restart()
	if e := waitStop(tid); e != nil {
		return true, fmt.Errorf("%w: %w", ErrNotStopped, e)
	}
	if err == nil {
		err = redirect(tid, uint64(fd), r)
	}
	return true, errors.Join(err, free(tid))
}

func redirect(tid int, fd uint64, r Redirect) error {
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &regs); err != nil {
		return fmt.Errorf("registers of %d: %w", tid, err)
	}
	if err := setSigmask(tid, ^uint64(0)); err != nil {
		return fmt.Errorf("signal mask of %d: %w", tid, err)
	}
	// The caller stands behind its syscall instruction with -ERESTARTNOINTR.
	// orig_rax = -1 keeps the kernel from restarting by itself.
	regs.Rip -= 2
	regs.Orig_rax = ^uint64(0)
	regs.Rax = unix.SYS_EXECVEAT
	regs.Rdi = fd
	regs.Rsi = r.Nul
	regs.Rdx = r.Argv
	regs.R10 = 0
	regs.R8 = unix.AT_EMPTY_PATH
	regs.R9 = r.Cookie
	if err := unix.PtraceSetRegs(tid, &regs); err != nil {
		return fmt.Errorf("set registers of %d: %w", tid, err)
	}
	return nil
}

// waitStop waits for the stop that PTRACE_INTERRUPT causes.
func waitStop(tid int) error {
	for {
		var ws unix.WaitStatus
		_, err := unix.Wait4(tid, &ws, unix.WALL, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		case !ws.Stopped():
			return unix.ESRCH
		case int(ws)>>16 == unix.PTRACE_EVENT_STOP:
			return nil
		}
		// The interrupt is seen before any signal; anything else is a stop that
		// somebody caused meanwhile, and goes on as it would have. One that was
		// killed in it does not, and its end is what comes next.
		if err := unix.PtraceCont(tid, int(ws.StopSignal())); err != nil && err != unix.ESRCH {
			return err
		}
	}
}
