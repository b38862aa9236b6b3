package node

import (
	"context"
	"slices"
	"sync"
	"time"

	"unum"
	"unum/sched"
)

// settleFor is how long after its start a daemon lets a process wait for the
// node that it asks for: the node may have registered after this one read the
// list, or be on its way up. Later what the list says is believed at once.
const settleFor = 10 * time.Second

// roster is the list of nodes from the moment on when this one has joined: what
// was read then, until heartbeats bring the live one.
type roster struct {
	read  func(context.Context) ([]unum.NodeInfo, error) // the store's list
	live  func() []unum.NodeInfo                         // nil while there is none
	self  unum.NodeID
	until time.Time // settleFor after the start

	mu    sync.Mutex
	first []unum.NodeInfo
	news  chan struct{} // closed with the next change
}

// joined takes the list that was read on joining.
func (r *roster) joined(list []unum.NodeInfo) {
	r.mu.Lock()
	r.first = list
	r.mu.Unlock()
	r.changed()
}

// changed says that nodes returns something else now.
func (r *roster) changed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.news)
	r.news = make(chan struct{})
}

func (r *roster) next() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.news
}

// nodes is the list as it is known now.
func (r *roster) nodes() []unum.NodeInfo {
	if l := r.live(); len(l) > 0 {
		return l
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.first
}

// settled says whether a wish (a value of UNUM_NODE) can be decided by the list
// as it is.
func (r *roster) settled(hint string) bool {
	return here(hint) || decidable(r.nodes(), r.self, hint) || time.Now().After(r.until)
}

// here says whether a wish names no other node.
func here(hint string) bool {
	switch hint {
	case "", sched.HintAuto, sched.HintHere, sched.HintHome:
		return true
	}
	return false
}

// alone says whether no other node is up.
func (r *roster) alone() bool {
	return !slices.ContainsFunc(r.nodes(), func(n unum.NodeInfo) bool { return n.ID != r.self && n.State == unum.Up })
}

func decidable(nodes []unum.NodeInfo, self unum.NodeID, hint string) bool {
	switch {
	case here(hint):
		return true
	case hint == sched.HintElsewhere:
		coming := false
		for _, n := range nodes {
			if n.ID != self && n.State == unum.Up {
				return true
			}
			coming = coming || n.ID != self && n.State == unum.Joining
		}
		return !coming
	}
	n, known := find(nodes, unum.NodeID(hint))
	return known && n.State != unum.Joining
}

func find(nodes []unum.NodeInfo, id unum.NodeID) (unum.NodeInfo, bool) {
	i := slices.IndexFunc(nodes, func(n unum.NodeInfo) bool { return n.ID == id })
	if i < 0 {
		return unum.NodeInfo{}, false
	}
	return nodes[i], true
}

// settle returns when a wish can be decided: the node is up, or lost, or the
// store has none of that name. false: it was waited for as long as may be.
func (r *roster) settle(ctx context.Context, hint string) bool {
	ctx, cancel := context.WithDeadline(ctx, r.until)
	defer cancel()
	asked := false
	for {
		news := r.next()
		nodes := r.nodes()
		if decidable(nodes, r.self, hint) {
			return true
		}
		if _, known := find(nodes, unum.NodeID(hint)); !known && !asked && hint != sched.HintElsewhere {
			// The list may be older than the node.
			all, err := r.read(ctx)
			if _, known = find(all, unum.NodeID(hint)); err == nil && !known {
				return true
			}
			asked = err == nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return false
		}
	}
}
