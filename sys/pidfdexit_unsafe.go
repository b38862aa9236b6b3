package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// pidfdInfo is struct pidfd_info of linux/pidfd.h, its first version.
type pidfdInfo struct {
	mask, cgroup uint64
	pid, tgid    uint32
	ppid         uint32
	ids          [8]uint32
	exitCode     int32
}

const (
	pidfdGetInfo  = 3<<30 | unsafe.Sizeof(pidfdInfo{})<<16 | 0xff<<8 | 11
	pidfdInfoExit = 1 << 3
)

// PidfdExit returns how a process ended that the kernel reaped by itself, since
// nobody waits for it (6.15, PIDFD_INFO_EXIT; fs/pidfs.c). Preconditions: the
// process has ended (PidfdWait). ENODATA if a parent may still wait for
// it; ENOTTY or EINVAL on older kernels.
func PidfdExit(pidfd int) (unix.WaitStatus, error) {
	// Between the news of the end and the reaping there is a moment.
	p := []unix.PollFd{{Fd: int32(pidfd)}}
	for {
		if _, err := unix.Poll(p, 100); err != unix.EINTR {
			break
		}
	}
	info := pidfdInfo{mask: pidfdInfoExit}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), pidfdGetInfo, uintptr(unsafe.Pointer(&info))); e != 0 {
		return 0, e
	}
	if info.mask&pidfdInfoExit == 0 {
		return 0, unix.ENODATA
	}
	return unix.WaitStatus(info.exitCode), nil
}
