package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sched makes one of the calls sched_*scheduler, sched_*param, sched_*attr and
// sched_rr_get_interval about a thread. buf is what the call's pointer points
// to, of the size that the call wants, and arg the policy.
func Sched(nr uint32, tid, arg int, buf []byte) (int64, error) {
	p := uintptr(tid)
	at := unsafe.Pointer(unsafe.SliceData(buf))
	var r uintptr
	var e unix.Errno
	switch nr {
	case unix.SYS_SCHED_SETSCHEDULER:
		r, _, e = unix.Syscall(uintptr(nr), p, uintptr(arg), uintptr(at))
	case unix.SYS_SCHED_GETATTR:
		r, _, e = unix.Syscall6(uintptr(nr), p, uintptr(at), uintptr(len(buf)), 0, 0, 0)
	default: // flags are 0, and the others have no third argument
		r, _, e = unix.Syscall(uintptr(nr), p, uintptr(at), 0)
	}
	if e != 0 {
		return 0, e
	}
	return int64(r), nil
}
