package ctl

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// terminal joins the client's terminal and the master of a terminal in the
// world. Its line discipline is that of the world; the client's own is raw.
type terminal struct {
	in, out *os.File
	saved   unix.Termios

	master *os.File // non-blocking, in the poller
	wakeR  int      // a pipe that ends the copying of input
	wakeW  int
	inDone chan struct{}
	otDone chan struct{}

	mu    sync.Mutex
	isRaw bool
}

// openTerminal looks at the client's terminal and changes nothing yet.
func openTerminal(s Stdio) (*terminal, error) {
	t := &terminal{in: s.In, out: s.Out, wakeR: -1, wakeW: -1}
	saved, err := unix.IoctlGetTermios(int(t.in.Fd()), unix.TCGETS)
	if err != nil {
		return nil, err
	}
	t.saved = *saved
	return t, nil
}

func (t *terminal) describe() (termios *unix.Termios, rows, cols uint16) {
	saved := t.saved
	if ws, err := unix.IoctlGetWinsize(int(t.out.Fd()), unix.TIOCGWINSZ); err == nil {
		rows, cols = ws.Row, ws.Col
	}
	return &saved, rows, cols
}

// start begins to copy. It owns master.
func (t *terminal) start(master *os.File) error {
	defer master.Close()
	fd, err := unix.FcntlInt(master.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return err
	}
	t.master = os.NewFile(uintptr(fd), "master")
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	t.wakeR, t.wakeW = p[0], p[1]
	t.inDone, t.otDone = make(chan struct{}), make(chan struct{})
	t.resize() // it may have changed meanwhile
	if err := t.raw(); err != nil {
		close(t.inDone)
		close(t.otDone)
		t.finish()
		return err
	}
	go t.copyIn()
	go t.copyOut()
	return nil
}

// raw sets the client's terminal to pass everything through, as cfmakeraw.
func (t *terminal) raw() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.saved
	r.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	r.Oflag &^= unix.OPOST
	r.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	r.Cflag &^= unix.CSIZE | unix.PARENB
	r.Cflag |= unix.CS8
	r.Cc[unix.VMIN], r.Cc[unix.VTIME] = 1, 0
	// TCSETSW: what was typed ahead is the command's and stays.
	if err := unix.IoctlSetTermios(int(t.in.Fd()), unix.TCSETSW, &r); err != nil {
		return err
	}
	t.isRaw = true
	return nil
}

// restore gives the terminal back as it was. It may be called at any time.
func (t *terminal) restore() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.isRaw {
		saved := t.saved
		unix.IoctlSetTermios(int(t.in.Fd()), unix.TCSETSW, &saved)
		t.isRaw = false
	}
}

// resize passes the client's window size on; the kernel tells the foreground
// group of the world's terminal.
func (t *terminal) resize() {
	if t.master == nil {
		return
	}
	ws, err := unix.IoctlGetWinsize(int(t.out.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return
	}
	if rc, err := t.master.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) { unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, ws) })
	}
}

// copyIn copies what is typed. It reads only what is there, so that nothing
// is taken from the terminal after the command has ended.
func (t *terminal) copyIn() {
	defer close(t.inDone)
	b := make([]byte, 4096)
	in := int(t.in.Fd())
	for {
		fds := []unix.PollFd{{Fd: int32(in), Events: unix.POLLIN}, {Fd: int32(t.wakeR), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil {
			if err == unix.EINTR {
				continue
			}
			return
		}
		if fds[1].Revents != 0 {
			return
		}
		n, err := unix.Read(in, b)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil || n <= 0 {
			t.master.Close() // our terminal hung up; so does theirs
			return
		}
		if _, err := t.master.Write(b[:n]); err != nil {
			return
		}
	}
}

// copyOut copies what the command writes, until it ends or the last one who
// has the terminal open closes it (EIO).
func (t *terminal) copyOut() {
	defer close(t.otDone)
	b := make([]byte, 32<<10)
	for {
		n, err := t.master.Read(b)
		if n > 0 {
			if _, werr := t.out.Write(b[:n]); werr != nil {
				t.master.Close()
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// finish is called when the command has ended: it copies what the command
// left in the terminal, and gives the client's terminal back.
func (t *terminal) finish() {
	if t.master != nil {
		unix.Close(t.wakeW)
		t.master.SetDeadline(time.Unix(1, 0)) // ends Read and Write
		<-t.inDone
		<-t.otDone
		t.drain()
		t.master.Close()
		unix.Close(t.wakeR)
		t.master = nil
	}
	t.restore()
}

// drain reads without waiting: everything that was written before the command
// ended is there, because a read of an empty master flushes the line
// discipline's work first (n_tty_read in drivers/tty/n_tty.c).
func (t *terminal) drain() {
	rc, err := t.master.SyscallConn()
	if err != nil {
		return
	}
	b := make([]byte, 32<<10)
	for {
		var n int
		var rerr error
		if err := rc.Control(func(fd uintptr) { n, rerr = unix.Read(int(fd), b) }); err != nil {
			return
		}
		if errors.Is(rerr, unix.EINTR) {
			continue
		}
		if rerr != nil || n <= 0 {
			return
		}
		if _, err := t.out.Write(b[:n]); err != nil && err != io.ErrShortWrite {
			return
		}
	}
}
