package tty

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
)

// press is one signal key of one terminal.
type press struct {
	sid unum.Pid
	dev uint32
	sig unix.Signal
}

// keypress counts the reports of one signal key that are still to come: the
// kernel sends it to every member of the foreground group, and each deputy
// reports its own; one that has not reported yet when the key is pressed again
// reports once, as the signal is pending once.
type keypress struct {
	due map[uint64]bool // by placement
	at  time.Time
}

// keypressTime is how long a deputy may take to report.
const keypressTime = time.Second

// Signal handles a signal that home's terminal sent to a deputy: one with
// si_code SI_KERNEL and si_pid 0 that is SIGINT, SIGQUIT, SIGTSTP or SIGWINCH.
// The guest's terminal then sends it to the whole foreground group there, once,
// however many deputies report it; and so do those of all other guests that have
// members of the group, at once: one that waited for its own deputies might see
// the end of a pipe first, because a member elsewhere has died. false means that
// it is not the terminal's, or that the group is not in the foreground any more:
// the caller sends it to the body as it would any other signal.
func (hs *Homes) Signal(ctx context.Context, pl carry.Placement, sig unix.Signal) bool {
	switch sig {
	case unix.SIGINT, unix.SIGQUIT, unix.SIGTSTP, unix.SIGWINCH:
	default:
		return false
	}
	session := hs.of(func(k homeKey) bool { return k.sid == pl.Sid })
	for _, h := range session {
		if h.key.guest != pl.Guest || !h.has(pl) {
			continue
		}
		if h.sync(ctx); !h.shows(pl.Pgid) {
			continue
		}
		if sig == unix.SIGWINCH { // the new size brings it
			return true
		}
		group := []*home{h}
		for _, o := range session {
			if o != h && o.key.dev == h.key.dev && len(o.running(pl.Pgid)) > 0 {
				group = append(group, o)
			}
		}
		if hs.report(group, pl, sig, time.Now()) {
			for _, o := range group {
				if o != h {
					if o.sync(ctx); !o.shows(pl.Pgid) {
						continue
					}
				}
				o.link.send(ctx, message{Op: opSignal, N: int64(sig)})
			}
		}
		return true
	}
	return false
}

// has says whether a placement has the terminal as its controlling one.
func (h *home) has(pl carry.Placement) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for e := range h.ends {
		if e.pl.ID == pl.ID && e.ctty {
			return true
		}
	}
	return false
}

// shows says whether the guest knows the group to be in the foreground. It will
// be told what a signal changes.
func (h *home) shows(pgid unum.Pid) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fg != pgid || h.hung {
		return false
	}
	h.dirty = true
	return true
}

// running lists the placements of a group that run at the guest.
func (h *home) running(pgid unum.Pid) map[uint64]bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	ids := map[uint64]bool{}
	for e := range h.ends {
		if e.pl.Pgid == pgid && e.running && e.ctty {
			ids[e.pl.ID] = true
		}
	}
	return ids
}

// report says whether a deputy's report is a new key press rather than one of
// the expected echoes of an earlier one. group are the homes of its terminal,
// the reporter's first.
func (hs *Homes) report(group []*home, pl carry.Placement, sig unix.Signal, now time.Time) bool {
	hs.pressMu.Lock()
	defer hs.pressMu.Unlock()
	for k, p := range hs.presses {
		if now.Sub(p.at) > keypressTime {
			delete(hs.presses, k)
		}
	}
	k := press{pl.Sid, group[0].key.dev, sig}
	p := hs.presses[k]
	if p == nil {
		p = &keypress{due: map[uint64]bool{}}
		hs.presses[k] = p
	}
	if p.due[pl.ID] {
		delete(p.due, pl.ID)
		return false
	}
	p.at = now
	for _, h := range group {
		for id := range h.running(pl.Pgid) {
			if id != pl.ID {
				p.due[id] = true
			}
		}
	}
	return true
}
