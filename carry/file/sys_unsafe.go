package file

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// setThreadGroups sets the supplementary groups of the calling thread alone;
// Go's own Setgroups sets those of all threads.
func setThreadGroups(groups []uint32) error {
	var p unsafe.Pointer
	if len(groups) > 0 {
		p = unsafe.Pointer(&groups[0])
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(p), 0); e != 0 {
		return e
	}
	return nil
}

// futimens is utimensat(2) without a path.
func futimens(fd int, ts [2]unix.Timespec) error {
	if _, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0); e != 0 {
		return e
	}
	return nil
}

func journalViews(mem []byte) (*journalHead, []journalSlot) {
	const head = 4096
	var h *journalHead
	_ = [1]struct{}{}[unsafe.Sizeof(*h)/(head+1)] // the head fits its page
	_ = [1]struct{}{}[journalSlots*unsafe.Sizeof(journalSlot{})/(journalSize-head+1)]
	return (*journalHead)(unsafe.Pointer(&mem[0])), unsafe.Slice((*journalSlot)(unsafe.Pointer(&mem[head])), journalSlots)
}

// ioctlP asks the file server for P of an open file.
func ioctlP(fd int) (p int64, err error) {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), IoctlP, uintptr(unsafe.Pointer(&p))); e != 0 {
		return 0, e
	}
	return p, nil
}
