package tty

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/sys"
)

// write does in order what the guest asks for.
func (h *home) write() {
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		// A half that ends forgets; one whose daemon ends has a successor.
		if err := h.page.close(h.k.ctx.Err() == nil); err != nil {
			h.k.log.Warn("close a terminal's page", "err", err)
		}
	}()
	for {
		h.mu.Lock()
		var m message
		ok := len(h.queue) > 0 && (h.live || h.hung)
		if ok {
			m = h.queue[0]
		}
		tty, rc := h.tty, h.rc
		h.mu.Unlock()
		if !ok {
			select {
			case <-h.writec:
				continue
			case <-h.ctx.Done():
				return
			}
		}
		h.do(m, tty, rc)
		h.mu.Lock()
		h.queue = h.queue[1:]
		h.mu.Unlock()
	}
}

func (h *home) do(m message, tty *os.File, rc syscall.RawConn) {
	ctl := func(fn func(fd int)) {
		if rc != nil {
			_ = rc.Control(func(fd uintptr) { fn(int(fd)) })
		}
	}
	switch m.Op {
	case opOutput:
		h.mu.Lock()
		skip := h.queue[0].Eof
		h.mu.Unlock()
		if tty != nil && !skip && !h.put(rc, m.N, m.B) {
			return // closed under it: what is left is a successor's
		}
		h.wrote(m.N + int64(len(m.B)))
		h.link.send(h.ctx, message{Op: opWritten, N: h.written})
	case opModes:
		if m.Modes == nil {
			return
		}
		ctl(func(fd int) {
			h.telling.Lock()
			defer h.telling.Unlock()
			old, err := sys.TtyAttr(fd)
			if err != nil {
				return
			}
			if err = sys.SetTtyAttr(fd, m.Modes.termios(old.Lflag)); err != nil {
				h.k.log.Warn("cannot set a terminal's modes", "err", err)
			}
			if now, err := sys.TtyAttr(fd); err == nil {
				h.mu.Lock()
				h.modes = modesOf(now)
				h.mu.Unlock()
			}
		})
		h.kick()
	case opSize:
		if m.Size == nil {
			return
		}
		h.mu.Lock()
		h.size = *m.Size
		h.mu.Unlock()
		ctl(func(fd int) { _ = sys.SetTtySize(fd, m.Size.winsize()) })
	case opDropIn:
		ctl(func(fd int) { _ = sys.TtyFlush(fd, unix.TCIFLUSH) })
	case opDropOut:
		ctl(func(fd int) { _ = sys.TtyFlush(fd, unix.TCOFLUSH) })
	case opWant:
		h.mu.Lock()
		h.setWant(m.N)
		h.mu.Unlock()
	case opFlush, opUnread:
		h.take.Lock()
		if m.Op == opFlush && m.Eof {
			// Only a question whether all was done.
		} else if m.Op == opFlush {
			h.mu.Lock()
			h.setWant(0)
			h.mu.Unlock()
		} else {
			ctl(func(fd int) {
				if err := putBack(fd, m.B, m.Eof); err != nil {
					h.k.log.Warn("cannot put unread input back", "bytes", len(m.B), "err", err)
				}
			})
		}
		h.link.send(h.ctx, message{Op: opFlushed, N: m.N})
		h.take.Unlock()
		h.kick()
	}
}

// put writes output to the terminal and notes at once how far it came. It says
// false if the terminal was closed here. A hang-up is noticed by read; output
// then goes where it would go natively.
func (h *home) put(rc syscall.RawConn, pos int64, b []byte) bool {
	for len(b) > 0 {
		var n int
		var err error
		if rc.Write(func(fd uintptr) bool {
			n, err = unix.Write(int(fd), b)
			return err != unix.EAGAIN
		}) != nil {
			return false
		}
		if n > 0 {
			h.wrote(pos + int64(n))
		}
		if err != nil && err != unix.EINTR {
			return true
		}
		n = max(n, 0)
		b, pos = b[n:], pos+int64(n)
	}
	return true
}

func (h *home) wrote(pos int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.written = pos
	h.page.set(wordWritten, uint64(pos))
}

// recheck is how often input that nobody takes is looked at again.
const recheck = 100 * time.Millisecond

// read watches one opening of the terminal for input and hang-up.
func (h *home) read(tty *os.File, rc syscall.RawConn) {
	for {
		h.mu.Lock()
		if h.tty != tty {
			h.mu.Unlock()
			return
		}
		_ = tty.SetReadDeadline(time.Time{})
		offered := h.offered
		pass := h.want == 0 && !h.passed && h.up.hasOffer()
		h.mu.Unlock()
		if pass {
			h.passOffer(true)
		}

		var re int16
		err := rc.Read(func(fd uintptr) bool {
			re, _ = sys.PollFD(int(fd), unix.POLLIN)
			return re != 0 || offered
		})
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case err != nil:
			return
		case re&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0:
			h.hangUp()
			return
		case re == 0: // somebody else took what we had offered
			h.offer(false)
			continue
		}
		if !h.foreground() {
			h.pause()
			continue
		}
		h.mu.Lock()
		want := h.want
		h.mu.Unlock()
		if want == 0 {
			h.offer(true)
			h.pause()
			continue
		}
		h.takeInput(rc)
	}
}

func (h *home) pause() {
	t := time.NewTimer(recheck)
	defer t.Stop()
	select {
	case <-h.kickc:
	case <-t.C:
	case <-h.ctx.Done():
	}
}

func (h *home) offer(on bool) {
	h.mu.Lock()
	was := h.offered
	if on && h.want != 0 {
		on = false // asked for meanwhile
		was = false
	}
	h.offered = on
	h.mu.Unlock()
	if was != on {
		h.link.send(h.ctx, message{Op: opOffer, N: number(on)})
	}
}

// takeInput reads once, as the guest asked.
func (h *home) takeInput(rc syscall.RawConn) {
	h.take.Lock()
	defer h.take.Unlock()
	h.sync(h.ctx)
	h.mu.Lock()
	want, canon := h.want, h.modes.canonical()
	h.mu.Unlock()
	if want == 0 {
		return
	}
	size := 4096
	if want == 2 {
		size = 1024
	}
	buf := make([]byte, size)
	n, err, re := 0, error(nil), int16(0)
	if rc.Control(func(fd uintptr) {
		// With VMIN 0 a read of nothing would look like an end of file.
		if re, err = sys.PollFD(int(fd), unix.POLLIN); err == nil && re&unix.POLLIN != 0 {
			n, err = unix.Read(int(fd), buf)
		} else if err == nil {
			err = unix.EAGAIN
		}
	}) != nil || err != nil || n == 0 && !canon {
		return
	}
	h.mu.Lock()
	if h.want == wantOnce {
		h.want = wantNothing
		h.up.wanted(h, wantNothing)
	}
	h.mu.Unlock()
	h.link.send(h.ctx, message{Op: opInput, B: buf[:n], Eof: n == 0})
}

func (h *home) hangUp() {
	h.mu.Lock()
	was := h.hung
	h.hung = true
	h.mu.Unlock()
	poke(h.writec)
	if !was {
		h.link.send(h.ctx, message{Op: opHangup})
	}
}

// foreground says whether a body of this guest is in the foreground, so that
// it may read.
func (h *home) foreground() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for e := range h.ends {
		if e.running && e.foreground(h.key.dev) {
			return true
		}
	}
	return false
}

func (h *home) foregroundOf(id uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for e := range h.ends {
		if e.pl.ID == id && e.foreground(h.key.dev) {
			return true
		}
	}
	return false
}

func (e *HomeEnd) foreground(dev uint32) bool {
	if !e.ctty {
		return true
	}
	var buf [1024]byte
	j, err := sys.ReadJob(e.hostPid, buf[:])
	return err == nil && j.TTY == dev && j.Foreground == j.Pgrp
}

// sync tells the guest what has changed at home's terminal.
func (h *home) sync(ctx context.Context) {
	h.telling.Lock()
	defer h.telling.Unlock()
	h.mu.Lock()
	if h.tty == nil || h.hung {
		h.mu.Unlock()
		return
	}
	rc := h.rc
	fg := unum.Pid(0)
	for e := range h.ends {
		if e.ctty && e.foreground(h.key.dev) {
			fg = e.pl.Pgid
			break
		}
	}
	var d Desc
	err := errors.New("closed")
	if cerr := rc.Control(func(fd uintptr) { err = d.read(int(fd)) }); cerr != nil || err != nil {
		h.mu.Unlock()
		return
	}
	var out []message
	if !d.Modes.equal(&h.modes) && !h.queued(opModes) {
		h.modes = d.Modes
		out = append(out, message{Op: opModes, Modes: &d.Modes})
	}
	if d.Size != h.size && !h.queued(opSize) {
		h.size = d.Size
		out = append(out, message{Op: opSize, Size: &d.Size})
	}
	if fg != h.fg {
		h.fg = fg
		out = append(out, message{Op: opFg, N: int64(fg)})
	}
	h.dirty = h.dirty || len(out) > 0
	for _, m := range out {
		if m.Op != opFg {
			h.shapes++
		}
	}
	h.mu.Unlock()
	for _, m := range out {
		h.link.send(ctx, m)
	}
}

// catchUp returns when the guest has home's modes and size: a body finds there
// what was set before its exec. They go by the link only while the terminal is
// open there, and the start request may overtake that.
func (h *home) catchUp(ctx context.Context) {
	h.sync(ctx)
	h.mu.Lock()
	told := h.shapes
	known := told == h.shaped
	h.mu.Unlock()
	if known {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, agentTime)
	defer cancel()
	if err := h.syncWait(ctx); err != nil {
		h.k.log.Warn("bring a terminal up to date", "node", h.key.guest, "err", err)
		return
	}
	h.mu.Lock()
	h.shaped = max(h.shaped, told)
	h.mu.Unlock()
}

// syncWait returns when the guest has done all it was told.
func (h *home) syncWait(ctx context.Context) error {
	c := make(chan struct{})
	h.mu.Lock()
	h.syncID++
	id := h.syncID
	h.syncs[id] = c
	h.mu.Unlock()
	h.link.send(ctx, message{Op: opSync, N: id})
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-h.ctx.Done():
		return unum.ErrLinkLost
	}
}
