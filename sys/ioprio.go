package sys

import "golang.org/x/sys/unix"

const whoProcess = 1 // IOPRIO_WHO_PROCESS

// IOPrio returns the I/O priority of a thread (man 2 ioprio_get).
func IOPrio(tid int) (int, error) {
	r, _, e := unix.Syscall(unix.SYS_IOPRIO_GET, whoProcess, uintptr(tid), 0)
	if e != 0 {
		return 0, e
	}
	return int(r), nil
}

// SetIOPrio sets it.
func SetIOPrio(tid, prio int) error {
	if _, _, e := unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, uintptr(tid), uintptr(prio)); e != 0 {
		return e
	}
	return nil
}
