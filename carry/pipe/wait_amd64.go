package pipe

import "golang.org/x/sys/unix"

const (
	sysVfork     = unix.SYS_VFORK
	sysPoll      = unix.SYS_POLL
	sysSelect    = unix.SYS_SELECT
	sysEpollWait = unix.SYS_EPOLL_WAIT
	sysPause     = unix.SYS_PAUSE
)
