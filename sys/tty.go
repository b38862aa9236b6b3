package sys

import (
	"bytes"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// The terminal ioctls of man 2 ioctl_tty. All take a descriptor and retry
// after EINTR. On a pty's master the calls about modes and size act on its
// slave.

// EXTPROC in c_lflag: the line discipline leaves input alone, because a remote
// one has processed it already (include/uapi/asm-generic/termbits.h).
const EXTPROC = 0x10000

// Packet mode's status bits (man 2 ioctl_tty, TIOCPKT).
const (
	PktFlushRead  = 0x01
	PktFlushWrite = 0x02
	PktIoctl      = 0x40
)

const (
	tiocgdev    = 0x80045432 // the real device behind /dev/tty
	tiocslck    = 0x5457     // TIOCSLCKTRMIOS
	tiocgptpeer = 0x5441     // 4.13
	tiocsti     = 0x5412
	tiocsig     = 0x40045436
)

func again(fn func() error) error {
	for {
		if err := fn(); err != unix.EINTR {
			return err
		}
	}
}

// TtyAttr returns the terminal's modes with arbitrary speeds (TCGETS2).
func TtyAttr(fd int) (t *unix.Termios, err error) {
	err = again(func() error { t, err = unix.IoctlGetTermios(fd, unix.TCGETS2); return err })
	return t, err
}

// SetTtyAttr sets the modes at once (TCSETS2).
func SetTtyAttr(fd int, t *unix.Termios) error {
	return again(func() error { return unix.IoctlSetTermios(fd, unix.TCSETS2, t) })
}

// LockTtyAttr keeps the bits that are set in mask from being changed by
// anybody (TIOCSLCKTRMIOS). Needs CAP_SYS_ADMIN.
func LockTtyAttr(fd int, mask *unix.Termios) error {
	return again(func() error { return unix.IoctlSetTermios(fd, tiocslck, mask) })
}

// TtySize and SetTtySize are TIOCGWINSZ and TIOCSWINSZ. A new size sends
// SIGWINCH to the foreground group.
func TtySize(fd int) (w *unix.Winsize, err error) {
	err = again(func() error { w, err = unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ); return err })
	return w, err
}

func SetTtySize(fd int, w *unix.Winsize) error {
	return again(func() error { return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, w) })
}

// TtyDev returns the device number of the terminal that fd is, also through
// /dev/tty. ENOTTY if it is none.
func TtyDev(fd int) (uint32, error) {
	var v int
	err := again(func() (err error) { v, err = unix.IoctlGetInt(fd, tiocgdev); return err })
	return uint32(v), err
}

// TtyInput returns how many bytes a reader would find. What was written to the
// other end just before is seen.
func TtyInput(fd int) (int, error) {
	if _, err := PollFD(fd, unix.POLLIN); err != nil { // flushes the buffer's work
		return 0, err
	}
	var n int
	err := again(func() (err error) { n, err = unix.IoctlGetInt(fd, unix.TIOCINQ); return err })
	return n, err
}

// TtyForeground returns the foreground group of a pty by its master, in the
// caller's PID namespace; 0 if there is none that it can see.
func TtyForeground(master int) (int, error) {
	var n int
	err := again(func() (err error) { n, err = unix.IoctlGetInt(master, unix.TIOCGPGRP); return err })
	return n, err
}

// SetTtyForeground is TIOCSPGRP: for a task of the terminal's session.
func SetTtyForeground(fd, pgrp int) error {
	return again(func() error { return unix.IoctlSetPointerInt(fd, unix.TIOCSPGRP, pgrp) })
}

// SetControllingTty is TIOCSCTTY, for a session leader without a terminal.
func SetControllingTty(fd int) error {
	return again(func() error { return unix.IoctlSetInt(fd, unix.TIOCSCTTY, 0) })
}

// TtyInsert puts one byte into the terminal's input as if it were typed
// (TIOCSTI). Where the caller has no such controlling terminal, or
// dev.tty.legacy_tiocsti is 0 (6.2), it needs CAP_SYS_ADMIN.
func TtyInsert(fd int, b byte) error {
	return again(func() error { return unix.IoctlSetPointerInt(fd, tiocsti, int(b)) })
}

// TtySignal sends SIGINT, SIGQUIT or SIGTSTP to the foreground group of a pty
// by its master (TIOCSIG).
func TtySignal(master int, sig unix.Signal) error {
	return again(func() error { return unix.IoctlSetInt(master, tiocsig, int(sig)) })
}

// TtyFlush discards queued input, output or both (TCFLSH).
func TtyFlush(fd, queue int) error {
	return again(func() error { return unix.IoctlSetInt(fd, unix.TCFLSH, queue) })
}

// OpenPty opens a pty of the devpts that is mounted at dir: an unlocked master
// in packet mode, non-blocking, and its number.
func OpenPty(dir string) (master *os.File, number int, err error) {
	fd, err := unix.Open(dir+"/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, &os.PathError{Op: "open", Path: dir + "/ptmx", Err: err}
	}
	if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err == nil {
		if err = unix.IoctlSetPointerInt(fd, unix.TIOCPKT, 1); err == nil {
			number, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, 0, os.NewSyscallError("ioctl of a new pty", err)
	}
	return os.NewFile(uintptr(fd), "ptmx"), number, nil
}

// OpenSlave opens the other end of a master (TIOCGPTPEER). It is never made a
// controlling terminal.
func OpenSlave(master int, flags int) (*os.File, error) {
	// O_CLOEXEC here would stay in the open file's flags, where /proc shows it
	// for every duplicate.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	for {
		fd, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(master), tiocgptpeer, uintptr(flags&^unix.O_CLOEXEC|unix.O_NOCTTY))
		switch e {
		case 0:
			unix.CloseOnExec(int(fd))
			return os.NewFile(fd, "pts"), nil
		case unix.EINTR:
		default:
			return nil, os.NewSyscallError("ioctl TIOCGPTPEER", e)
		}
	}
}

// PollFD asks once, without waiting.
func PollFD(fd int, events int16) (revents int16, err error) {
	p := []unix.PollFd{{Fd: int32(fd), Events: events}}
	err = again(func() error { _, err := unix.Poll(p, 0); return err })
	return p[0].Revents, err
}

// Job is how a process stands to its terminal, numbered as the /proc of the
// reader numbers it.
type Job struct {
	State         byte
	Pgrp, Session int
	TTY           uint32 // device number of the controlling terminal, or 0
	Foreground    int    // that terminal's foreground group; -1 if none
}

// ReadJob reads it from /proc/PID/stat. buf is scratch space of at least 512
// bytes, or nil.
func ReadJob(pid int, buf []byte) (j Job, err error) {
	if buf == nil {
		buf = make([]byte, 1024)
	}
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return j, err
	}
	defer unix.Close(fd)
	var n int
	if err = again(func() error { n, err = unix.Read(fd, buf); return err }); err != nil {
		return j, err
	}
	b := buf[:n]
	i := bytes.LastIndexByte(b, ')')
	if i < 0 || i+4 > len(b) {
		return j, unix.EINVAL
	}
	b = b[i+2:]
	j.State = b[0]
	b = b[2:]
	var v [5]int // ppid, pgrp, session, tty_nr, tpgid
	for k := range v {
		f, rest, ok := bytes.Cut(b, []byte{' '})
		if !ok {
			return j, unix.EINVAL
		}
		if v[k], err = strconv.Atoi(string(f)); err != nil {
			return j, err
		}
		b = rest
	}
	j.Pgrp, j.Session, j.TTY, j.Foreground = v[1], v[2], uint32(v[3]), v[4]
	return j, nil
}
