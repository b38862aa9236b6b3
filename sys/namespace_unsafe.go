package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// NamespaceID reads, from a path such as /proc/1/ns/net, the number that tells
// a namespace from all others that this kernel has had since its start. The
// inode number does not: that of a dead namespace is given to the next one.
// NS_GET_ID, Linux 6.18 (include/uapi/linux/nsfs.h); ENOTTY or EINVAL before.
func NamespaceID(path string) (uint64, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var id uint64
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.NS_GET_ID, uintptr(unsafe.Pointer(&id))); e != 0 {
		return 0, e
	}
	return id, nil
}
