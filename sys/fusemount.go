package sys

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// FuseMount is a mount with what its server must have to go on where one
// before it was killed. Who holds it keeps the mount alive; with the last Dev
// that is closed the mount is dead, and all calls on it fail.
type FuseMount struct {
	Dev    *os.File // the device, non-blocking and not in Go's poller
	Root   *os.File // O_PATH
	Memory *os.File // a memfd, empty at first, for what the server must know
}

// NewFuseMount makes a mount that nobody serves yet (see MountFuse).
func NewFuseMount(source string) (*FuseMount, error) {
	fd, err := unix.MemfdCreate("unum-fs", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory of the file server: %w", err)
	}
	m := &FuseMount{Memory: os.NewFile(uintptr(fd), "memory of the file server")}
	if m.Dev, m.Root, err = MountFuse(source); err != nil {
		m.Memory.Close()
		return nil, err
	}
	return m, nil
}

// Files is what a server inherits, in the order of InheritedFuseMount.
func (m *FuseMount) Files() []*os.File { return []*os.File{m.Dev, m.Root, m.Memory} }

// InheritedFuseMount takes the mount whose Files were inherited as descriptors
// first and following.
func InheritedFuseMount(first int) (*FuseMount, error) {
	for fd := first; fd < first+3; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return nil, fmt.Errorf("no mount was inherited as descriptor %d: %w", fd, err)
		}
	}
	return &FuseMount{
		Dev:    rawFile(first, "/dev/fuse"),
		Root:   os.NewFile(uintptr(first+1), "fuse mount"),
		Memory: os.NewFile(uintptr(first+2), "memory of the file server"),
	}, nil
}

// Dead says that no server can serve it any more.
func (m *FuseMount) Dead() bool {
	p := []unix.PollFd{{Fd: int32(m.Dev.Fd()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(p, 0)
		if err != unix.EINTR {
			return err != nil || p[0].Revents&unix.POLLERR != 0
		}
	}
}

// Close closes all three.
func (m *FuseMount) Close() {
	for _, f := range m.Files() {
		f.Close()
	}
}
