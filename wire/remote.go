package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
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
	gone      context.Context // ended and replaced by Lost and Forget
	goneNow   context.CancelFunc
	ctl       *conn
	next      uint64
	pending   map[uint64]*call
	refused   error // why the last attempt was refused, for calls within redialMax
	refusedAt time.Time

	bulk     [bulkConns]bulkSlot
	nextBulk int

	session *session             // what the peer asks of this endpoint
	served  map[*conn]unum.Epoch // connections it dialed
}

// call is one question under way. The one who takes it out of pending
// completes it.
type call struct {
	id     uint64
	method string
	req    []byte
	status byte
	res    []byte
	err    error
	done   chan struct{} // capacity 1
}

var callPool = sync.Pool{New: func() any { return &call{done: make(chan struct{}, 1)} }}

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

// Call implements unum.Peer.
func (r *remote) Call(ctx context.Context, method string, req []byte) ([]byte, error) {
	if len(req) > MaxCall || len(method) > 255 {
		return nil, r.wrap("call "+method, fmt.Errorf("request of %d bytes: above the limit of %d", len(req), MaxCall))
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c := callPool.Get().(*call)
	r.mu.Lock()
	if err := r.usable(); err != nil {
		r.mu.Unlock()
		callPool.Put(c)
		return nil, r.wrap("call "+method, err)
	}
	r.next++
	c.id, c.method, c.req = r.next, method, req
	r.pending[c.id] = c
	ctl := r.ctl
	if ctl == nil && !r.want {
		r.want = true
		r.nudge()
	}
	r.mu.Unlock()
	if ctl != nil {
		ctl.sendCall(ctx, c.id, method, req)
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		if r.take(c.id) != nil {
			c.method, c.req = "", nil
			callPool.Put(c)
			r.cancel(c.id)
			return nil, ctx.Err()
		}
		<-c.done
	}
	status, res, err := c.status, c.res, c.err
	*c = call{done: c.done}
	callPool.Put(c)
	switch {
	case err != nil:
		return nil, r.wrap("call "+method, err)
	case status != statusOK:
		return nil, decodeError(res)
	}
	return res, nil
}

// take removes a pending call; nil if somebody else completes it.
func (r *remote) take(id uint64) *call {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.pending[id]
	delete(r.pending, id)
	return c
}

// cancel tells the peer that the caller gave up.
func (r *remote) cancel(id uint64) {
	r.mu.Lock()
	ctl := r.ctl
	r.mu.Unlock()
	if ctl != nil {
		ctl.lock()
		ctl.buf = appendHeader(ctl.buf, frameCancel, id, 0)
		ctl.queue()
	}
}

// sendCall writes a call in parts. What goes wrong is noticed by the reader,
// and the call sent again on the next connection.
func (c *conn) sendCall(ctx context.Context, id uint64, method string, req []byte) {
	var n int
	c.lock()
	c.buf, n = appendCall(c.buf, id, method, req)
	c.flush()
	c.sendParts(ctx, frameMore, id, req[n:])
}

// sendParts writes the rest of a body and keeps out of the way of other
// frames: it waits while much is queued.
func (c *conn) sendParts(ctx context.Context, typ frameType, id uint64, rest []byte) {
	for len(rest) > 0 {
		if c.room(ctx) != nil {
			return
		}
		n := min(len(rest), partSize)
		c.buf = appendFrame(c.buf, typ, id, rest[:n])
		c.flush()
		rest = rest[n:]
	}
}

// tell writes a message if there is a connection that is not stuck.
func (r *remote) tell(method string, msg []byte) bool {
	if 1+len(method)+len(msg) > maxFrame || len(method) > 255 {
		return false
	}
	r.mu.Lock()
	ctl := r.ctl
	if ctl == nil && !r.want && r.usable() == nil {
		r.want = true
		r.nudge()
	}
	r.mu.Unlock()
	if ctl == nil {
		return false
	}
	ctl.lock()
	if len(ctl.buf) > 2*maxQueued || ctl.err != nil { // large calls fill half of it
		ctl.mu.Unlock()
		return false
	}
	ctl.buf = appendNamed(ctl.buf, frameTell, 0, method, msg)
	ctl.queue()
	return true
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
		c, h, err := r.ep.connect(r.ep.ctx, r.id, false)
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

// failPending takes all pending calls; complete must follow, without mu.
func (r *remote) failPending(err error) []*call {
	var out []*call
	for id, c := range r.pending {
		c.err = err
		out = append(out, c)
		delete(r.pending, id)
	}
	return out
}

func complete(calls []*call) {
	for _, c := range calls {
		c.done <- struct{}{}
	}
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
	if r.ctl == c {
		r.ctl = nil
	}
	r.mu.Unlock()
	r.ep.disown(c.raw)
}

// asker takes the frames of the dialed control connection: answers.
type asker struct {
	r     *remote
	parts parts
}

func (a *asker) frame(c *conn, h header, body []byte) error {
	switch h.typ {
	case frameReply:
		total, rest, err := parseTotal(body)
		if err != nil {
			return err
		}
		status, data := rest[0], rest[1:]
		if len(data) < total {
			a.parts.begin(h.id, &part{code: status, total: total}, data)
			return nil
		}
		a.answer(c, h.id, status, data)
	case frameReplyMore:
		q, err := a.parts.more(h.id, body)
		if q == nil || err != nil {
			return err
		}
		a.answer(c, h.id, q.code, q.data)
	default:
		return fmt.Errorf("%w: frame %d on a control connection", errProtocol, h.typ)
	}
	return nil
}

func (a *asker) answer(c *conn, id uint64, status byte, data []byte) {
	p := a.r.take(id)
	// The peer keeps the answer until it hears this. A large one is not left
	// waiting for the next frame.
	c.lock()
	c.buf = appendHeader(c.buf, frameAck, id, 0)
	if len(data) >= partSize {
		c.queue()
	} else {
		c.put()
	}
	if p != nil {
		p.status, p.res = status, data
		p.done <- struct{}{}
	}
}

func (a *asker) lost(*conn, error) {}

// setLost ends the life of the peer with this epoch.
func (r *remote) setLost(epoch unum.Epoch) {
	r.mu.Lock()
	if r.isLost && epoch <= r.lostEpoch {
		r.mu.Unlock()
		return
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
	s := r.session
	r.session = nil
	r.goneNow()
	r.gone, r.goneNow = context.WithCancel(r.ep.ctx)
	r.mu.Unlock()
	for _, c := range conns {
		c.fail(err)
	}
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
	if r.isLost && epoch > r.lostEpoch {
		r.isLost = false
	}
	r.refused = nil
	r.mu.Unlock()
	r.nudge()
}

// admits says whether a connection of that epoch of the peer may stand. A new
// life ends the state lost.
func (r *remote) admits(epoch unum.Epoch) error {
	r.mu.Lock()
	lost, old := r.isLost, r.lostEpoch
	r.mu.Unlock()
	if lost && epoch <= old {
		return fmt.Errorf("%w: %s was declared lost in epoch %d", unum.ErrStaleEpoch, r.id, old)
	}
	if lost {
		r.back(epoch)
	}
	return nil
}
