package sys

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// PidfdOpen opens a pidfd that the netpoller can wait on: PIDFD_NONBLOCK (5.10)
// only matters to waitid. The descriptor is close-on-exec.
func PidfdOpen(pid int) (int, error) {
	return unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
}

// PidfdGetfd duplicates descriptor fd of the process (5.6; needs ptrace
// rights). The duplicate is close-on-exec.
func PidfdGetfd(pidfd, fd int) (*os.File, error) {
	n, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(n), "carried"), nil
}

// Siginfo is the kernel's siginfo_t as it is in memory.
type Siginfo [128]byte

func (s *Siginfo) word(off int) int32 { return *(*int32)(unsafe.Pointer(&s[off])) }

// Signo, Code, Pid, Uid and Status are the fields of that name; the last three
// mean something only for some codes (man 2 sigaction).
func (s *Siginfo) Signo() unix.Signal { return unix.Signal(s.word(0)) }
func (s *Siginfo) Code() int32        { return s.word(8) }
func (s *Siginfo) Pid() int32         { return s.word(16) }
func (s *Siginfo) Uid() int32         { return s.word(20) }
func (s *Siginfo) Status() int32      { return s.word(24) }

// Value is si_value, of a queued signal.
func (s *Siginfo) Value() uint64     { return *(*uint64)(unsafe.Pointer(&s[24])) }
func (s *Siginfo) SetValue(v uint64) { *(*uint64)(unsafe.Pointer(&s[24])) = v }

// MakeSiginfo builds one.
func MakeSiginfo(sig unix.Signal, code, pid, uid int32) *Siginfo {
	var s Siginfo
	put := func(off int, v int32) { *(*int32)(unsafe.Pointer(&s[off])) = v }
	put(0, int32(sig))
	put(8, code)
	put(16, pid)
	put(20, uid)
	return &s
}

// PidfdSendSignal sends a signal; info may be nil (then it is like kill).
func PidfdSendSignal(pidfd int, sig unix.Signal, info *Siginfo) error {
	_, _, e := unix.Syscall6(unix.SYS_PIDFD_SEND_SIGNAL, uintptr(pidfd), uintptr(sig), uintptr(unsafe.Pointer(info)), 0, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// PidfdWait returns when the process has ended. The descriptor stays open. It
// parks the goroutine on the netpoller, not a thread.
func PidfdWait(pidfd int) error {
	dup, err := unix.FcntlInt(uintptr(pidfd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	// The duplicate shares PIDFD_NONBLOCK, so it is pollable for the runtime.
	f := os.NewFile(uintptr(dup), "pidfd")
	defer f.Close()
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return rc.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			_, err := unix.Poll(p, 0)
			if err == unix.EINTR {
				continue
			}
			return err != nil || p[0].Revents != 0
		}
	})
}
