package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// ReadProc reads a file of /proc. Unlike os.ReadFile it makes three calls and
// no more: it registers nothing with the netpoller and asks for no size.
func ReadProc(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	b := make([]byte, 4096)
	n := 0
	for {
		m, err := unix.Read(fd, b[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		n += m
		// A short read is the end: these files are made whole for each open.
		if m == 0 || n < len(b) {
			return b[:n], nil
		}
		b = append(b, make([]byte, len(b))...)
	}
}
