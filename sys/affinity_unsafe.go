package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// SchedGetaffinity fills mask and returns how many bytes of it the kernel has.
func SchedGetaffinity(pid int, mask []byte) (int64, error) {
	if len(mask) == 0 {
		return 0, unix.EINVAL
	}
	r, _, e := unix.Syscall(unix.SYS_SCHED_GETAFFINITY, uintptr(pid), uintptr(len(mask)), uintptr(unsafe.Pointer(&mask[0])))
	if e != 0 {
		return 0, e
	}
	return int64(r), nil
}

// SchedSetaffinity sets the mask of one thread.
func SchedSetaffinity(pid int, mask []byte) error {
	if len(mask) == 0 {
		return unix.EINVAL
	}
	_, _, e := unix.Syscall(unix.SYS_SCHED_SETAFFINITY, uintptr(pid), uintptr(len(mask)), uintptr(unsafe.Pointer(&mask[0])))
	if e != 0 {
		return e
	}
	return nil
}
