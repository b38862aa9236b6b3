package tty

import (
	"bytes"
	"context"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/sys"
)

// Preconditions: mu is held.
func (l *Line) acknowledge(n int64) {
	l.written = max(l.written, n)
	l.page.set(wordWritten, uint64(l.written))
	close(l.ackc)
	l.ackc = make(chan struct{})
}

// agentTime bounds what a link waits for an agent.
const agentTime = 5 * time.Second

// handle does what home says.
func (l *Line) handle(m message) {
	switch m.Op {
	case opWritten:
		l.mu.Lock()
		l.acknowledge(m.N)
		l.mu.Unlock()
		l.checkIdle()
	case opOffer:
		l.mu.Lock()
		l.offered = m.N != 0
		l.mu.Unlock()
		poke(l.watchc)
		for _, h := range l.relayed() {
			h.passOffer(m.N != 0)
		}
	case opInput:
		l.input(m)
	case opFlushed:
		l.mu.Lock()
		if c := l.flushes[m.N]; c != nil {
			close(c)
			delete(l.flushes, m.N)
		}
		l.mu.Unlock()
	case opModes:
		if m.Modes == nil {
			return
		}
		l.io.Lock()
		if l.master != nil {
			l.pump() // sees what a body has set before
			l.pending = nil
			l.mu.Lock()
			if m.Modes.equal(&l.modes) {
				// A new home daemon tells what it finds.
			} else if err := sys.SetTtyAttr(rawFD(l.master), m.Modes.termios(sys.EXTPROC)); err == nil {
				l.raw = false
				if t, err := sys.TtyAttr(rawFD(l.master)); err == nil {
					l.modes = modesOf(t)
					l.page.setModes(&l.modes)
				}
			}
			l.mu.Unlock()
		}
		l.io.Unlock()
		l.wish()
	case opSize:
		if m.Size == nil {
			return
		}
		l.control(func(fd int) { // at once, or checkSize takes the old one for a body's
			l.mu.Lock()
			defer l.mu.Unlock()
			l.size = *m.Size
			_ = sys.SetTtySize(fd, m.Size.winsize())
		})
	case opFg:
		l.mu.Lock()
		known := m.N != 0 && l.fg == unum.Pid(m.N)
		l.mu.Unlock()
		if known && l.confirm() {
			return // a shell here may have set another one since
		}
		ctx, cancel := context.WithTimeout(l.ctx, agentTime)
		if err := l.setForeground(ctx, unum.Pid(m.N)); err != nil {
			l.k.log.Warn("cannot set a foreground group", "pgid", m.N, "err", err)
		}
		cancel()
	case opSignal:
		l.signal(unix.Signal(m.N))
	case opHangup:
		l.hangUp()
	case opRelease:
		l.mu.Lock()
		l.release = m.N
		l.mu.Unlock()
		l.checkIdle()
	case opSync:
		l.confirm()
		l.link.send(l.ctx, message{Op: opSynced, N: m.N})
	}
}

func (l *Line) control(fn func(fd int)) {
	l.io.Lock()
	defer l.io.Unlock()
	if l.master != nil {
		fn(rawFD(l.master))
	}
}

// signal is a key pressed at home. A foreground group that home has and that
// does not exist here yet gets it when its leader runs.
func (l *Line) signal(sig unix.Signal) {
	l.mu.Lock()
	l.late = append(l.late, sig)
	l.mu.Unlock()
	if l.confirm() {
		l.press(l.takeLate()...)
	}
}

func (l *Line) takeLate() []unix.Signal {
	l.mu.Lock()
	defer l.mu.Unlock()
	late := l.late
	l.late = nil
	return late
}

// press sends signals to the foreground group. Like the line discipline it drops
// the output that is still queued, unless NOFLSH is set; but before the signal,
// so that what a handler writes is not lost.
func (l *Line) press(sigs ...unix.Signal) {
	l.control(func(fd int) {
		if len(sigs) > 0 && l.modesNow().L&unix.NOFLSH == 0 {
			l.drop(fd)
		}
		for _, sig := range sigs {
			if err := sys.TtySignal(fd, sig); err != nil {
				l.k.log.Warn("cannot signal a terminal", "sig", sig, "err", err)
			}
		}
	})
}

// Preconditions: io is held.
func (l *Line) drop(fd int) {
	buf := make([]byte, 4096)
	for left := pipeline; left > 0; {
		n, err := unix.Read(fd, buf)
		if err != nil || n <= 0 {
			return
		}
		if buf[0] != 0 {
			l.status(fd, buf[0])
		}
		left -= n
	}
}

// input gives home's input to the pty.
func (l *Line) input(m message) {
	l.io.Lock()
	master := l.master
	l.mu.Lock()
	if l.want == 1 {
		l.want = 0
	}
	l.eager = 3
	b := m.B
	if m.Eof && l.modes.canonical() {
		b = []byte{l.modes.Cc[unix.VEOF]} // alone in the buffer it reads as 0 bytes
	}
	l.mu.Unlock()
	l.io.Unlock()
	if master != nil && len(b) > 0 {
		_, _ = master.Write(b) // waits only while the pty is full
	}
	poke(l.watchc)
}

// read moves what bodies write towards home.
func (l *Line) read() {
	l.io.Lock()
	master := l.master
	l.io.Unlock()
	if master == nil {
		return
	}
	rc, err := master.SyscallConn()
	if err != nil {
		return
	}
	hup := false
	for l.ctx.Err() == nil {
		l.mu.Lock()
		full, ackc := l.sent-l.written >= window, l.ackc
		l.mu.Unlock()
		if full {
			select {
			case <-ackc:
			case <-l.ctx.Done():
			}
			continue
		}
		wasHup := hup
		err := rc.Read(func(fd uintptr) bool {
			re, err := sys.PollFD(int(fd), unix.POLLIN|unix.POLLPRI)
			if err != nil {
				return true
			}
			hup = re&unix.POLLHUP != 0
			return re&(unix.POLLIN|unix.POLLPRI) != 0 || hup != wasHup
		})
		if err != nil {
			return
		}
		l.io.Lock()
		l.pump()
		l.io.Unlock()
		if hup {
			l.checkIdle()
		}
	}
}

// pipeline is more than a pty's buffers hold: of output that was written before
// some moment no more than that can be read after it.
const pipeline = 72 << 10

// pump sends what the master has, as far as the window goes. drained says that
// there is no more. Preconditions: io is held.
func (l *Line) pump() (drained bool) {
	if l.master == nil {
		return true
	}
	fd := rawFD(l.master)
	var buf [4097]byte
	for {
		l.mu.Lock()
		room := window - (l.sent - l.written)
		l.mu.Unlock()
		if room <= 1 {
			return false
		}
		n, err := unix.Read(fd, buf[:min(room, int64(len(buf)))])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil || n <= 0: // EAGAIN, or EIO while nobody has it open
			if l.cr {
				l.cr = false
				l.output([]byte{'\r'})
			}
			l.settle()
			return true
		case buf[0] != 0:
			l.status(fd, buf[0])
			continue
		}
		b := buf[1:n]
		if l.cr {
			b = append([]byte{'\r'}, b...)
			l.cr = false
		}
		// A change of modes may lie within what was read: look before sending.
		l.look(fd)
		l.data(b)
	}
}

// look handles a status byte, if there is one. Preconditions: io is held.
func (l *Line) look(fd int) {
	if re, _ := sys.PollFD(fd, unix.POLLPRI); re&unix.POLLPRI != 0 {
		var st [1]byte
		if n, err := unix.Read(fd, st[:]); n == 1 && err == nil {
			l.status(fd, st[0])
		}
	}
}

// heed tells home what bodies have done to the terminal so far, other than
// output, so that what is asked for next is seen after it.
func (l *Line) heed() { l.control(l.look) }

// data sends output. While the modes turn \n into \r\n this is undone, since
// home's terminal does it again. Preconditions: io is held.
func (l *Line) data(b []byte) {
	if l.pending != nil {
		l.output(b)
		if l.verbat -= len(b); l.verbat <= 0 {
			l.settle()
		}
		return
	}
	l.mu.Lock()
	undo := l.modes.newlines()
	l.mu.Unlock()
	if undo {
		if b[len(b)-1] == '\r' {
			l.cr, b = true, b[:len(b)-1]
		}
		b = bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n"))
	}
	l.output(b)
}

// Preconditions: io is held.
func (l *Line) output(b []byte) {
	if len(b) == 0 {
		return
	}
	l.mu.Lock()
	pos := l.sent
	l.page.put(pos, b)
	l.sent += int64(len(b))
	l.page.set(wordSent, uint64(l.sent))
	l.mu.Unlock()
	l.link.send(l.ctx, message{Op: opOutput, N: pos, B: bytes.Clone(b)})
}

// status handles a packet mode status byte. Preconditions: io is held.
//
// Nothing tells where in the queued output the modes changed. But output that
// the guest's pty has processed and output that the body has made ready itself
// are both right on a terminal that adds nothing. So what is queued is sent
// as it is while home's terminal is in that one of the two modes which adds no
// \r: modes that stop adding it go first, modes that begin to, last.
func (l *Line) status(fd int, st byte) {
	if st&sys.PktFlushRead != 0 {
		l.link.send(l.ctx, message{Op: opDropIn})
	}
	if st&sys.PktFlushWrite != 0 {
		l.cr = false
		l.link.send(l.ctx, message{Op: opDropOut})
	}
	if st&sys.PktIoctl == 0 {
		return
	}
	t, err := sys.TtyAttr(fd)
	if err != nil {
		return
	}
	now := modesOf(t)
	l.mu.Lock()
	before := l.modes
	l.mu.Unlock()
	if l.pending != nil {
		before = *l.pending
	}
	if now.equal(&before) {
		return
	}
	if !l.modesNow().newlines() && now.newlines() {
		l.pending, l.verbat = &now, pipeline
		return
	}
	l.pending = &now
	l.settle()
}

func (l *Line) modesNow() *Modes {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.modes
	return &m
}

// settle tells home the pending modes. Preconditions: io is held.
func (l *Line) settle() {
	if l.pending == nil {
		return
	}
	m := *l.pending
	l.pending = nil
	l.mu.Lock()
	l.modes = m
	l.page.setModes(&m)
	l.raw = !m.canonical()
	l.unsure = true
	l.mu.Unlock()
	l.link.send(l.ctx, message{Op: opModes, Modes: &m})
	l.wish()
}

// flush: see End.Flush.
func (l *Line) flush(ctx context.Context, e *End) error {
	for {
		l.io.Lock()
		drained := l.pump()
		l.checkSize()
		l.io.Unlock()
		l.mu.Lock()
		done, ackc := drained && l.sent <= l.written, l.ackc
		l.mu.Unlock()
		if l.ctx.Err() != nil {
			return nil // hung up: nobody is left to see it
		}
		if done {
			break
		}
		if err := l.await(ctx, ackc); err != nil {
			return err
		}
	}
	l.mu.Lock()
	same := false
	for o := range l.ends {
		same = same || o.pl.ID != e.pl.ID && o.pl.Pgid == e.pl.Pgid
	}
	mine := !l.ctty || l.fg == e.pl.Pgid
	if mine && !same {
		l.raw = false
	}
	quiet := !mine || l.want == 0 && l.unread() == 0
	unsure := l.unsure
	l.unsure = false
	if !quiet {
		l.want = -1
	}
	l.mu.Unlock()
	if quiet {
		if unsure {
			return l.ask(ctx, message{Op: opFlush, Eof: true})
		}
		return nil
	}
	// No wish is open and all input is here once home has answered.
	err := l.ask(ctx, message{Op: opFlush})
	if err == nil {
		if b, eof := l.takeBack(); len(b) > 0 || eof {
			err = l.ask(ctx, message{Op: opUnread, B: b, Eof: eof})
		}
	}
	l.mu.Lock()
	l.want = 0
	l.mu.Unlock()
	l.wish()
	poke(l.watchc)
	return err
}

func (l *Line) await(ctx context.Context, c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	case <-l.ctx.Done():
		return nil // hung up
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ask sends a question that home answers by opFlushed.
func (l *Line) ask(ctx context.Context, m message) error {
	c := make(chan struct{})
	l.mu.Lock()
	l.flushID++
	m.N = l.flushID
	l.flushes[m.N] = c
	l.mu.Unlock()
	l.link.send(l.ctx, m)
	return l.await(ctx, c)
}

// unread counts the input that nobody has read. Preconditions: mu is held.
func (l *Line) unread() int {
	if l.slave == nil {
		return 0
	}
	n, _ := sys.TtyInput(rawFD(l.slave))
	return n
}

// takeBack reads it.
func (l *Line) takeBack() (b []byte, eof bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.slave == nil {
		return nil, false
	}
	buf := make([]byte, 4096)
	for len(b) < 64<<10 {
		n, err := readNow(rawFD(l.slave), buf)
		if err != nil {
			return b, eof
		}
		if n == 0 {
			return b, l.modes.canonical()
		}
		b = append(b, buf[:n]...)
	}
	return b, eof
}

// checkSize tells home a size that a body has set. Preconditions: io is held.
func (l *Line) checkSize() {
	if l.master == nil {
		return
	}
	w, err := sys.TtySize(rawFD(l.master))
	if err != nil {
		return
	}
	s := sizeOf(w)
	l.mu.Lock()
	changed := s != l.size
	l.size = s
	l.mu.Unlock()
	if changed {
		l.mu.Lock()
		l.unsure = true
		l.mu.Unlock()
		l.link.send(l.ctx, message{Op: opSize, Size: &s})
	}
}
