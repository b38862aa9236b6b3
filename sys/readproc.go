package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// ReadDirNames lists a directory, unsorted. Like ReadProc it makes no calls that
// only matter to files that can be waited for.
func ReadDirNames(path string) ([]string, error) {
	d, err := OpenDir(path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Names()
}

// Dir is an open directory.
type Dir struct{ fd int }

// OpenDir opens one.
func OpenDir(path string) (Dir, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Dir{}, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return Dir{fd}, nil
}

// Names lists it, unsorted. It can be called once.
func (d Dir) Names() (names []string, err error) {
	buf := make([]byte, 4096)
	for {
		n, err := unix.ReadDirent(d.fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return names, os.NewSyscallError("getdents64", err)
		}
		if n == 0 {
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

// Readlink reads a link in it: into b, as far as there is room.
func (d Dir) Readlink(name string, b []byte) ([]byte, error) {
	n, err := unix.Readlinkat(d.fd, name, b)
	if err != nil {
		return nil, err
	}
	return b[:n], nil
}

// Lstat is fstatat(2) that follows no link.
func (d Dir) Lstat(name string, st *unix.Stat_t) error {
	return unix.Fstatat(d.fd, name, st, unix.AT_SYMLINK_NOFOLLOW)
}

// Close closes it.
func (d Dir) Close() error { return unix.Close(d.fd) }

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
