package rexec

import (
	"context"
	"sync"
	"time"

	"unum"
)

// A signal to a process group goes to each node as one message (calls), which
// gives it to all of the group that run there. The deputies have it too, marked
// with its number, and hand it on as they do with any: a body takes each number
// once, whichever way brings it first, so that none is lost with a daemon and
// none is doubled.
//
// A body that ends by such a signal must not be known to be dead, at its
// deputy's node, before the message is there: its parent would see its child
// die and run on. So the news of its end names the signal, and waits for it.

// groups remembers the last signals to groups that this node has delivered.
type groups struct {
	mu   sync.Mutex
	done [256]uint64
	at   int
	news chan struct{} // closed with the next
}

func newGroups() *groups { return &groups{news: make(chan struct{})} }

func (g *groups) add(id uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.done[g.at] = id
	g.at = (g.at + 1) % len(g.done)
	close(g.news)
	g.news = make(chan struct{})
}

// look says whether a signal was delivered here; if not, news is closed when
// another one is.
func (g *groups) look(id uint64) (done bool, news <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, d := range g.done {
		if d == id {
			return true, nil
		}
	}
	return false, g.news
}

// groupWait bounds how long the end of a body waits for a group's signal: the
// node that sends it may have been lost in the midst of it.
const groupWait = time.Second

// wait returns when the signal was delivered here.
func (g *groups) wait(ctx context.Context, id uint64) {
	if id == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, groupWait)
	defer cancel()
	for {
		done, news := g.look(id)
		if done {
			return
		}
		select {
		case <-news:
		case <-ctx.Done():
			return
		}
	}
}

// groupNote stands in the ledger, in the place of a signal, for all of a
// group's members on this node; the signal's number is in that of the body.
const groupNote = 1

// ClaimGroup says whether a body here is still to be given a group's signal,
// and notes that it is.
func (g *Guests) ClaimGroup(id uint64, pid unum.Pid) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	b := g.bodies[pid]
	if b == nil || b.delivered(id) {
		return false
	}
	b.after = id
	return true
}

// GroupDone says that a group's signal has been delivered on this node, to
// these bodies among others. If it was given to nobody there is no need to
// remember that for longer than the daemon lives.
func (g *Guests) GroupDone(id uint64, bodies []unum.Pid, given bool) {
	if given {
		g.mu.Lock()
		for _, pid := range bodies {
			if b := g.bodies[pid]; b != nil {
				g.ledger.add(b.place.ID, id)
			}
		}
		g.ledger.add(id, groupNote)
		g.mu.Unlock()
	}
	g.groups.add(id)
}

// GroupKnown says whether this node has delivered a group's signal before.
func (g *Guests) GroupKnown(id uint64) bool {
	done, _ := g.groups.look(id)
	return done
}
