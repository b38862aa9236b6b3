package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"sync"
	"time"

	"unum"
)

// redialMax bounds the pause between attempts to reach a peer.
const redialMax = 100 * time.Millisecond

// bulkConns is how many connections carry the channels to one peer.
const bulkConns = 2

// remote is another node, as asked (the control and bulk connections that this
// endpoint dials) and as asking (session).
//
//	idle ──want──▶ dialing ──▶ connected ──broken──▶ dialing
//	  ▲               │ refused or not known
//	  └───────────────┘            any ──Lost──▶ lost ──Back──▶ idle
type remote struct {
	ep   *Endpoint
	id   unum.NodeID
	wake chan struct{} // to keep: something changed

	mu        sync.Mutex
	closed    bool
	want      bool // somebody needs a connection
	isLost    bool
	lostEpoch unum.Epoch      // of the life that is over
	alive     unum.Epoch      // the highest that was seen or told
	gone      context.Context // ended and replaced by Lost and Forget
	goneNow   context.CancelFunc
	ctl       *conn
	next      uint64
	pending   map[uint64]*call
	refused   error // why the last attempt was refused, for calls within redialMax
	refusedAt time.Time

	bulk     [bulkConns]bulkSlot
	nextBulk int

	quiet    *quiet // dialed; nil while there is none
	hushing  bool   // it is being dialed
	hushedAt time.Time
	heard    *quiet // accepted

	session *session             // what the peer asks of this endpoint
	served  map[*conn]unum.Epoch // connections it dialed
}

func newRemote(e *Endpoint, id unum.NodeID) *remote {
	r := &remote{
		ep: e, id: id, wake: make(chan struct{}, 1),
		pending: map[uint64]*call{}, served: map[*conn]unum.Epoch{},
	}
	r.gone, r.goneNow = context.WithCancel(e.ctx)
	for i := range r.bulk {
		r.bulk[i].sem = make(chan struct{}, 1)
	}
	return r
}

func (r *remote) Node() unum.NodeID { return r.id }

func (r *remote) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// usable says why nothing can be asked of the peer now. mu is held.
func (r *remote) usable() error {
	switch {
	case r.closed:
		return ErrClosed
	case r.isLost:
		return unum.ErrNodeLost
	case r.refused != nil && time.Since(r.refusedAt) < redialMax:
		return r.refused
	}
	return nil
}

func (r *remote) wrap(op string, err error) error {
	return &unum.Error{Op: op, Node: r.id, Err: err}
}

// keep dials the control connection whenever one is wanted and none stands.
func (r *remote) keep() {
	defer r.ep.wg.Done()
	pause := time.Duration(0)
	for {
		r.mu.Lock()
		want, closed := r.want && !r.isLost, r.closed
		r.mu.Unlock()
		if closed {
			return
		}
		if !want {
			pause = 0
			if !r.rest(0) {
				return
			}
			continue
		}
		c, h, err := r.ep.connect(r.ep.ctx, r.id, kindControl)
		if err != nil {
			r.dialFailed(err)
			r.ep.peerChanged(r.id, 0, false, err)
			pause = min(max(2*pause, 2*time.Millisecond), redialMax)
			if !r.rest(pause) {
				return
			}
			continue
		}
		if !r.install(c) {
			continue
		}
		began := time.Now()
		c.flushed()
		r.ep.peerChanged(r.id, h.Incarnation, true, nil)
		<-c.dead
		r.uninstall(c)
		r.ep.peerChanged(r.id, h.Incarnation, false, c.cause())
		<-c.done
		// At once, unless the peer accepts only to hang up.
		if pause = 0; time.Since(began) < redialMax {
			pause = 2 * time.Millisecond
			if !r.rest(pause) {
				return
			}
		}
	}
}

// rest waits for d, or for a nudge if d is 0. It returns false when the
// endpoint closes.
func (r *remote) rest(d time.Duration) bool {
	var timer <-chan time.Time
	wake := r.wake
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		timer, wake = t.C, nil
	}
	select {
	case <-r.ep.ctx.Done():
		return false
	case <-wake:
	case <-timer:
	}
	return true
}

// dialFailed fails what waits if trying again does not help.
func (r *remote) dialFailed(err error) {
	var refused refusedError
	r.mu.Lock()
	switch {
	case errors.As(err, &refused):
		err = refused.error
	case errors.Is(err, unum.ErrNoNode):
	default:
		r.mu.Unlock()
		r.ep.log.Debug("peer does not answer", "node", r.id, "err", err)
		return
	}
	r.want = false
	level := slog.LevelWarn
	if r.refused != nil {
		level = slog.LevelDebug // said before
	}
	r.refused, r.refusedAt = err, time.Now()
	failed := r.failPending(err)
	r.mu.Unlock()
	complete(failed)
	r.ep.log.Log(r.ep.ctx, level, "no connection to peer", "node", r.id, "err", err)
}

// install makes c the control connection and repeats what is pending on it.
func (r *remote) install(c *conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.isLost {
		r.ep.disown(c.raw)
		c.raw.Close()
		return false
	}
	// Nobody else has c yet, so its buffer needs no lock. All of this stands in
	// it before any call that comes later.
	c.ep.log.Debug("connected", "node", r.id, "pending", len(r.pending))
	ids := make([]byte, 0, 8*len(r.pending))
	for id := range r.pending {
		ids = binary.LittleEndian.AppendUint64(ids, id)
	}
	for len(ids) > partSize { // more than 8,192 calls at once
		c.buf = appendFrame(c.buf, frameSync, 0, ids[:partSize])
		ids = ids[partSize:]
	}
	c.buf = appendFrame(c.buf, frameSync, r.next+1, ids)
	for id, p := range r.pending {
		var n int
		p.sent = true
		c.buf, n = appendCall(c.buf, id, p.method, p.req)
		for rest := p.req[n:]; len(rest) > 0; rest = rest[n:] {
			n = min(len(rest), partSize)
			c.buf = appendFrame(c.buf, frameMore, id, rest[:n])
		}
	}
	r.ctl, r.refused = c, nil
	c.run(&asker{r: r, parts: parts{}})
	return true
}

// flushed has everything in the buffer written.
func (c *conn) flushed() {
	c.lock()
	c.queue()
}

func (r *remote) uninstall(c *conn) {
	r.mu.Lock()
	q := r.quiet
	if r.ctl == c {
		r.ctl, r.quiet = nil, nil
		r.hushedAt = time.Time{}
	} else {
		q = nil
	}
	r.mu.Unlock()
	q.close()
	r.ep.disown(c.raw)
}
