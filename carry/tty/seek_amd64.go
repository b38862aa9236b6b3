package tty

import "golang.org/x/sys/unix"

func callOf(nr int) call {
	switch nr {
	case unix.SYS_READ, unix.SYS_READV:
		return callRead
	case unix.SYS_POLL, unix.SYS_PPOLL:
		return callPoll
	case unix.SYS_SELECT, unix.SYS_PSELECT6:
		return callSelect
	case unix.SYS_EPOLL_WAIT, unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_PWAIT2:
		return callEpoll
	case unix.SYS_RESTART_SYSCALL:
		return callRestart
	}
	return callOther
}
