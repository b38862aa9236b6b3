package sys

import "golang.org/x/sys/unix"

// KcmpFile says whether descriptor fd1 of pid1 and fd2 of pid2 are the same
// open file description (man 2 kcmp, CONFIG_KCMP).
func KcmpFile(pid1, pid2, fd1, fd2 int) (bool, error) {
	const kcmpFile = 0
	return kcmp(pid1, pid2, kcmpFile, fd1, fd2)
}

// KcmpVM says whether two processes share their memory, as a child that was
// born in vfork does with its parent until it executes something.
func KcmpVM(pid1, pid2 int) (bool, error) {
	const kcmpVM = 1
	return kcmp(pid1, pid2, kcmpVM, 0, 0)
}

func kcmp(pid1, pid2, what, a, b int) (bool, error) {
	// Not a RawSyscall: kcmp takes the exec_update_lock of both processes, which
	// an exec holds while it closes descriptors, and a close can wait long
	// (FUSE's FLUSH). Go's stop-the-world would wait with it.
	r, _, e := unix.Syscall6(unix.SYS_KCMP, uintptr(pid1), uintptr(pid2), uintptr(what), uintptr(a), uintptr(b), 0)
	if e != 0 {
		return false, e
	}
	return r == 0, nil
}
