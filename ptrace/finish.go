package ptrace

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"unum/seccomp"
)

// suspendSeccomp is PTRACE_O_SUSPEND_SECCOMP (4.3, CONFIG_CHECKPOINT_RESTORE).
const suspendSeccomp = 1 << 21

// ErrNoFollow says that this kernel, or the sandbox that the daemon runs in,
// does not let filters be suspended: no call can be followed.
var ErrNoFollow = errors.New("filters cannot be suspended")

// onThread runs f on an OS thread of its own, which ends with it: a tracee
// that f left behind is detached by the kernel.
func onThread(f func() error) error {
	done := make(chan error, 1)
	goOnThread(func() { done <- f() })
	return <-done
}

// goOnThread starts f on an OS thread of its own, which ends with it. That is
// never the main one, which Go parks for good instead of ending it.
func goOnThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		elsewhere := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(elsewhere)
			f()
		}()
		<-elsewhere
		runtime.UnlockOSThread()
	}()
}

// Finish lets the caller of a trapped call make it, and runs then with the
// result before the caller sees it; then is not run if the call is interrupted,
// in which case the caller issues it again, or gets EINTR, as ever. taken says
// whether the notification was answered; if not it is the owner's.
//
// The caller's filters are suspended meanwhile and nothing about it is
// changed, so if the daemon dies the caller goes on by itself.
func Finish(n *seccomp.Notif, then func(ret int64)) (taken bool, err error) {
	err = onThread(func() error {
		tid := n.Tid
		if err := seize(tid); err != nil {
			return fmt.Errorf("seize %d: %w", tid, err)
		}
		err := unix.PtraceInterrupt(tid)
		taken = true
		n.Restart()
		if e := waitStop(tid); e != nil {
			return fmt.Errorf("%w: %w", ErrNotStopped, e)
		}
		if err == nil {
			if err = unix.PtraceSetOptions(tid, suspendSeccomp|unix.PTRACE_O_TRACESYSGOOD); err != nil && err != unix.ESRCH {
				err = fmt.Errorf("%w: %w", ErrNoFollow, err)
			}
		}
		pass := 0
		if err == nil {
			pass, err = follow(tid, n, then)
		}
		if e := detach(tid, pass); e != nil && err == nil {
			err = fmt.Errorf("detach %d: %w", tid, e)
		}
		return err
	})
	return taken, err
}

// follow runs the caller from before its call to behind it. It returns the
// signal that the caller is to get when it is let go.
func follow(tid int, n *seccomp.Notif, then func(ret int64)) (pass int, err error) {
	entered := false
	for {
		if err := unix.PtraceSyscall(tid, 0); err != nil {
			return 0, err
		}
		ws, err := waitAny(tid)
		if err != nil {
			return 0, err
		}
		switch {
		case !ws.Stopped():
			return 0, unix.ESRCH
		case ws.StopSignal() == unix.SIGTRAP|0x80 && !entered:
			entered = true
		case ws.StopSignal() == unix.SIGTRAP|0x80:
			var regs unix.PtraceRegs
			if err := unix.PtraceGetRegs(tid, &regs); err != nil {
				return 0, err
			}
			// -ERESTARTSYS to -ERESTART_RESTARTBLOCK: a signal is next.
			if ret := int64(regs.Rax); regs.Orig_rax == uint64(n.Nr) && (ret > -512 || ret < -516) {
				then(ret)
			}
			return 0, nil
		case int(ws)>>16 == unix.PTRACE_EVENT_STOP:
			return 0, nil // a stop of the job; it takes effect when detached
		default:
			return int(ws.StopSignal()), nil
		}
	}
}

// Reissue makes a thread that blocks in a call that can be restarted issue it
// again, so that it is trapped once more. Nothing happens to one that does not.
func Reissue(tid int) error {
	return onThread(func() error {
		if err := seize(tid); err != nil {
			return fmt.Errorf("seize %d: %w", tid, err)
		}
		err := unix.PtraceInterrupt(tid)
		if err != nil {
			return fmt.Errorf("interrupt %d: %w", tid, err)
		}
		if err := waitStop(tid); err != nil {
			return fmt.Errorf("%w: %w", ErrNotStopped, err)
		}
		return unix.PtraceDetach(tid)
	})
}

func waitAny(tid int) (ws unix.WaitStatus, err error) {
	for {
		if _, err = unix.Wait4(tid, &ws, unix.WALL, nil); err != unix.EINTR {
			return ws, err
		}
	}
}
