package sys

import "golang.org/x/sys/unix"

// IOPrio returns the I/O priority of a thread (man 2 ioprio_get).
func IOPrio(tid int) (int, error) {
	const whoProcess = 1
	r, _, e := unix.Syscall(unix.SYS_IOPRIO_GET, whoProcess, uintptr(tid), 0)
	if e != 0 {
		return 0, e
	}
	return int(r), nil
}
