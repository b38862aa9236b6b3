package wire

import (
	"context"
	"fmt"

	"unum"
)

// setLost ends the life of the peer with this epoch.
func (r *remote) setLost(epoch unum.Epoch) {
	r.mu.Lock()
	if r.isLost && epoch <= r.lostEpoch || epoch < r.alive {
		r.mu.Unlock()
		return // known, or said too late: a later life has begun
	}
	r.isLost, r.lostEpoch = true, epoch
	r.mu.Unlock()
	r.drop(unum.ErrNodeLost)
}

// drop fails all that waits for the peer and closes its connections.
func (r *remote) drop(err error) {
	r.mu.Lock()
	r.want = false
	failed := r.failPending(err)
	conns := make([]*conn, 0, 4)
	if r.ctl != nil {
		conns = append(conns, r.ctl)
		r.ctl = nil
	}
	for i := range r.bulk {
		if c := r.bulk[i].conn; c != nil {
			conns = append(conns, c)
		}
	}
	for c := range r.served {
		conns = append(conns, c)
	}
	out, in := r.quiet, r.heard
	r.quiet, r.heard = nil, nil
	s := r.session
	r.session = nil
	r.goneNow()
	r.gone, r.goneNow = context.WithCancel(r.ep.ctx)
	r.mu.Unlock()
	for _, c := range conns {
		c.fail(err)
	}
	out.close()
	in.close()
	if s != nil {
		s.cancel()
	}
	complete(failed)
}

func (r *remote) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.drop(ErrClosed)
	r.nudge()
}

// back ends the state lost for a higher epoch.
func (r *remote) back(epoch unum.Epoch) {
	r.mu.Lock()
	r.alive = max(r.alive, epoch)
	if r.isLost && epoch > r.lostEpoch {
		r.isLost = false
	}
	r.refused = nil
	r.mu.Unlock()
	r.nudge()
}

// admits says whether a connection of that epoch of the peer may stand. A new
// life ends the state lost, and the life before it. Epoch 0 is a node that has
// none yet.
func (r *remote) admits(epoch unum.Epoch) error {
	r.mu.Lock()
	lost, old, alive := r.isLost, r.lostEpoch, r.alive
	r.mu.Unlock()
	switch {
	case lost && epoch <= old:
		return fmt.Errorf("%w: %s was declared lost in epoch %d", unum.ErrStaleEpoch, r.id, old)
	case epoch != 0 && epoch < alive:
		return fmt.Errorf("%w: %s is in epoch %d by now", unum.ErrStaleEpoch, r.id, alive)
	case epoch > alive:
		if alive != 0 && !(lost && old == epoch-1) {
			// Its first connection is faster than the news of the end of the last.
			r.setLost(epoch - 1)
			if r.ep.cfg.Next != nil {
				r.ep.cfg.Next(r.id, epoch)
			}
		}
		r.back(epoch)
	}
	return nil
}
