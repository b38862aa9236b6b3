package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls below are made behind the runtime's back: it does not prepare for
// their waiting, which on an idle machine would wake its monitor thread and
// cost more than the call. They are for descriptors on which they do not wait:
// files of /proc and of cgroups, and what is O_NONBLOCK.

// RawRead is read(2).
func RawRead(fd int, b []byte) (int, error) {
	return rawIO(unix.SYS_READ, fd, b)
}

// RawWrite is write(2); the caller takes care of SIGPIPE.
func RawWrite(fd int, b []byte) (int, error) {
	return rawIO(unix.SYS_WRITE, fd, b)
}

// RawPread is pread(2).
func RawPread(fd int, b []byte, off int64) (int, error) {
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_PREAD64, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(off), 0, 0)
		switch {
		case e == unix.EINTR:
		case e != 0:
			return 0, e
		default:
			return int(n), nil
		}
	}
}

func rawIO(call uintptr, fd int, b []byte) (int, error) {
	for {
		n, _, e := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		switch {
		case e == unix.EINTR:
		case e != 0:
			return 0, e
		default:
			return int(n), nil
		}
	}
}
