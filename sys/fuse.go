package sys

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// MountFuse makes a FUSE mount that lies at no path: it is reached only
// through mnt, and is gone with the last descriptor of it and of what was
// opened on it. Requests are read from dev, which is non-blocking. Everybody
// who holds a descriptor may use the mount (allow_other).
//
// fsopen and fsmount: Linux 5.2, fsopen(2). Needs CAP_SYS_ADMIN.
func MountFuse(source string) (dev, mnt *os.File, err error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open /dev/fuse: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, nil, fmt.Errorf("fsopen fuse: %w", err)
	}
	defer unix.Close(fs)
	for _, o := range [][2]string{
		{"source", source}, {"fd", strconv.Itoa(fd)}, {"rootmode", "40000"}, {"user_id", "0"}, {"group_id", "0"},
	} {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return nil, nil, fmt.Errorf("fsconfig %s: %w", o[0], err)
		}
	}
	if err := unix.FsconfigSetFlag(fs, "allow_other"); err != nil {
		return nil, nil, fmt.Errorf("fsconfig allow_other: %w", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, nil, fmt.Errorf("fsconfig create: %w", err)
	}
	m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return nil, nil, fmt.Errorf("fsmount: %w", err)
	}
	// The daemon closes dev only by dropping it: a *os.File of a non-blocking
	// descriptor would enter Go's poller, which the device loop does not want.
	return rawFile(fd, "/dev/fuse"), os.NewFile(uintptr(m), "fuse mount"), nil
}

// rawFile wraps a non-blocking descriptor without handing it to the poller.
func rawFile(fd int, name string) *os.File {
	unix.SetNonblock(fd, false)
	f := os.NewFile(uintptr(fd), name)
	unix.SetNonblock(fd, true)
	return f
}
