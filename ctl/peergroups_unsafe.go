package ctl

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// peerGroups reads SO_PEERGROUPS. The first call with no room tells how much
// is needed (ERANGE).
func peerGroups(fd int) ([]uint32, error) {
	n := uint32(32)
	for {
		groups := make([]uint32, n)
		size := n * 4
		_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case e == 0:
			return groups[:size/4], nil
		case e == unix.ERANGE && size/4 > n:
			n = size / 4
		default:
			return nil, e
		}
	}
}
