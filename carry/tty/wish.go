package tty

import (
	"time"

	"golang.org/x/sys/unix"

	"unum/sys"
)

const (
	wantNothing = 0
	wantOnce    = 1
	wantAll     = 2
)

// Of a body that wants every key so much may lie unread before it is asked.
const (
	rawHigh = 2048
	rawLow  = 512
)

// wish sees whether bodies want every key, and says so to home.
func (l *Line) wish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := l.raw && len(l.ends) > 0 && (!l.ctty || l.fg != 0)
	if all && l.want == wantAll && l.unread() > rawHigh {
		all = false
		l.eager = 3
		poke(l.watchc)
	} else if all && l.want != wantAll && l.unread() > rawLow {
		return
	}
	switch {
	case l.want < 0: // a flush is on its way and decides anew
	case all && l.want != wantAll:
		l.tell(wantAll)
	case !all && l.want == wantAll:
		l.tell(wantNothing)
		poke(l.watchc)
	}
}

// Preconditions: mu is held.
func (l *Line) tell(n int64) {
	l.want = n
	l.link.send(l.ctx, message{Op: opWant, N: n})
}

// watch looks for tasks that wait for input: while home has some on offer, and
// shortly after some was delivered. It waits longer from look to look, and at
// least twenty times as long as a look takes.
func (l *Line) watch() {
	t := time.NewTimer(time.Hour)
	defer t.Stop()
	delay := firstLook
	for {
		l.wish()
		l.mu.Lock()
		look := l.want == wantNothing && len(l.ends) > 0 && (l.offered || l.eager > 0)
		wait := l.want == wantNothing && l.raw && l.eager > 0
		l.mu.Unlock()
		next := time.Hour
		if look {
			began := time.Now()
			if l.relayWaits() || l.readerWaits() {
				l.heed() // who reads now may have flushed its input before
				l.mu.Lock()
				if l.want == wantNothing && l.unread() == 0 {
					l.offered, l.eager = false, 0
					l.tell(wantOnce)
					look = false
				}
				l.mu.Unlock()
			}
			if look {
				next = max(delay, 20*time.Since(began))
				delay = min(delay*2, lastLook)
			}
		} else if wait {
			next = delay
		}
		if next < time.Millisecond { // the runtime's timers are coarser
			ts := unix.NsecToTimespec(int64(next))
			_ = unix.Nanosleep(&ts, nil)
			next = 0
		}
		t.Reset(next)
		select {
		case <-l.watchc:
			delay = firstLook
		case <-t.C:
			l.mu.Lock()
			if l.eager > 0 {
				l.eager--
			}
			l.mu.Unlock()
		case <-l.ctx.Done():
			return
		}
	}
}

const (
	firstLook = 200 * time.Microsecond
	lastLook  = 50 * time.Millisecond
)

// readerWaits says whether a task of the foreground group (any task, if this is
// nobody's controlling terminal) is blocked reading the terminal or
// polling it for input.
func (l *Line) readerWaits() bool {
	if l.k.cfg.WorldPids == nil {
		return true
	}
	pgrp, number := 0, -1
	l.control(func(fd int) {
		pgrp, _ = sys.TtyForeground(fd)
		number, _ = unix.IoctlGetInt(fd, unix.TIOCGPTN)
	})
	if number < 0 {
		return false
	}
	dev := uint32(unix.Mkdev(majPts, uint32(number)))
	s := seeker{dev: dev}
	waits := func(pid int) bool {
		j, err := sys.ReadJob(pid, s.buf[:])
		if err != nil || pgrp != 0 && (j.Pgrp != pgrp || j.TTY != dev) || j.State == 'T' || j.State == 'Z' {
			return false
		}
		s.own = j.TTY == dev
		return s.process(pid)
	}
	if l.reader != 0 && waits(l.reader) { // who read the last line reads the next
		return true
	}
	pids, err := l.k.cfg.WorldPids()
	if err != nil {
		return false
	}
	for _, pid := range pids {
		if waits(pid) {
			l.reader = pid
			return true
		}
	}
	return false
}
