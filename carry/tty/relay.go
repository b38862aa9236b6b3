package tty

import (
	"os"

	"golang.org/x/sys/unix"
)

// A body that places its own children elsewhere makes a chain: this node is a
// guest of the terminal and a home of it at once. The home half then reads and
// writes the Line's slave like any process; what it cannot see on a slave, that
// there is input further up and that somebody down the chain wants it, is
// relayed here.

// has says whether some line may be the device.
func (g *Guests) has(dev uint32) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, l := range g.lines {
		if l.is(dev) {
			return true
		}
	}
	return false
}

func (l *Line) is(dev uint32) bool { return uint64(dev) == unix.Mkdev(majPts, uint32(l.number)) }

// lineOf returns the line whose slave f is, or nil. Other instances of devpts
// have the same numbers.
func (g *Guests) lineOf(f *os.File, dev uint32) *Line {
	if !g.has(dev) {
		return nil
	}
	var st unix.Stat_t
	if unix.Fstat(rawFD(f), &st) != nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, l := range g.lines {
		if l.is(dev) && l.devpts == uint64(st.Dev) {
			return l
		}
	}
	return nil
}

// The methods below do nothing for nil. They may be called with home.mu held.

func (l *Line) relay(h *home) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.relays[h] = wantNothing
}

func (l *Line) unrelay(h *home) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.relays, h)
}

// wanted says what somebody down the chain wants.
func (l *Line) wanted(h *home, n int64) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.relays[h]; ok {
		l.relays[h] = n
		if n != wantNothing {
			poke(l.watchc)
			l.eager = max(l.eager, 1)
		}
	}
}

func (l *Line) relayed() (out []*home) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for h := range l.relays {
		out = append(out, h)
	}
	return out
}

// relayWaits says whether anybody down the chain waits for input.
func (l *Line) relayWaits() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.relays {
		if n != wantNothing {
			return true
		}
	}
	return false
}

// hasOffer says whether there is input further up.
func (l *Line) hasOffer() bool {
	if l == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.offered
}
