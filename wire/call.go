package wire

import (
	"context"
	"fmt"
	"sync"

	"unum"
)

// call is one question under way. The one who takes it out of pending
// completes it.
type call struct {
	id     uint64
	method string
	req    []byte
	status byte
	res    []byte
	err    error
	sent   bool          // on some connection: it may have been heard
	done   chan struct{} // capacity 1
}

var callPool = sync.Pool{New: func() any { return &call{done: make(chan struct{}, 1)} }}

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
	c.sent = ctl != nil
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
	if r.tellQuietly(method, msg) {
		return true
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

// failPending takes all pending calls; complete must follow, without mu.
func (r *remote) failPending(err error) []*call {
	var out []*call
	for id, c := range r.pending {
		c.err = err
		if c.sent && err == unum.ErrNodeLost {
			c.err = unum.ErrUnanswered
		}
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
