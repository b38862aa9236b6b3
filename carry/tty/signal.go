package tty

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"unum/carry"
)

// keypress counts the reports of one signal key that are still to come: the
// kernel sends it to every member of the foreground group, and each deputy
// reports its own.
type keypress struct {
	due map[uint64]int // by placement
	at  time.Time
}

// keypressTime is how long a deputy may take to report.
const keypressTime = 200 * time.Millisecond

// Signal handles a signal that home's terminal sent to a deputy: one with
// si_code SI_KERNEL and si_pid 0 that is SIGINT, SIGQUIT, SIGTSTP or SIGWINCH.
// The guest's terminal then sends it to the whole foreground group there, once,
// however many deputies report it. false means that it is not the terminal's,
// or that the group is not in the foreground any more: the caller sends it to
// the body as it would any other signal.
func (hs *Homes) Signal(ctx context.Context, pl carry.Placement, sig unix.Signal) bool {
	for _, h := range hs.of(func(k homeKey) bool { return k.sid == pl.Sid && k.guest == pl.Guest }) {
		if h.signal(ctx, pl, sig) {
			return true
		}
	}
	return false
}

func (h *home) signal(ctx context.Context, pl carry.Placement, sig unix.Signal) bool {
	switch sig {
	case unix.SIGINT, unix.SIGQUIT, unix.SIGTSTP, unix.SIGWINCH:
	default:
		return false
	}
	h.mu.Lock()
	mine := false
	for e := range h.ends {
		mine = mine || e.pl.ID == pl.ID && e.ctty
	}
	h.mu.Unlock()
	if !mine {
		return false
	}
	h.sync(ctx)
	h.mu.Lock()
	if h.fg != pl.Pgid || h.hung {
		h.mu.Unlock()
		return false
	}
	if sig == unix.SIGWINCH { // the new size brings it
		h.mu.Unlock()
		return true
	}
	fresh := h.report(pl, sig, time.Now())
	h.dirty = true
	h.mu.Unlock()
	if fresh {
		h.link.send(ctx, message{Op: opSignal, N: int64(sig)})
	}
	return true
}

// report says whether a deputy's report is a new key press rather than one of
// the expected echoes of an earlier one. Preconditions: mu is held.
func (h *home) report(pl carry.Placement, sig unix.Signal, now time.Time) bool {
	p := h.keys[sig]
	if p == nil || now.Sub(p.at) > keypressTime {
		p = &keypress{due: map[uint64]int{}}
		h.keys[sig] = p
	}
	if p.due[pl.ID] > 0 {
		p.due[pl.ID]--
		return false
	}
	p.at = now
	seen := map[uint64]bool{pl.ID: true}
	for e := range h.ends {
		if e.pl.Pgid == pl.Pgid && e.running && !seen[e.pl.ID] {
			seen[e.pl.ID] = true
			p.due[e.pl.ID]++
		}
	}
	return true
}
