package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/vmihailenco/msgpack/v5"

	"unum"
)

// Status of an answer.
const (
	statusOK byte = iota
	statusError
)

// session is what one incarnation of a peer asks of this endpoint. It
// outlives its connections.
type session struct {
	ep     *Endpoint
	from   unum.NodeID
	inc    unum.Incarnation
	ctx    context.Context // of all its handlers
	cancel context.CancelFunc

	mu    sync.Mutex
	ctl   *conn // where answers go; nil while broken
	calls map[uint64]*inbound
}

// inbound is one call of a peer.
//
//	running ──handler returns──▶ answered ──ack or sync──▶ forgotten
//	   └──cancel──▶ abandoned ──handler returns──▶ forgotten
type inbound struct {
	s       *session
	id      uint64
	handler unum.Handler
	req     []byte
	ctx     lazyContext

	// guarded by session.mu
	answered  bool
	abandoned bool
	status    byte
	res       []byte
}

// attach takes over a connection that the peer dialed, after its hello was
// judged, and sends ours.
func (r *remote) attach(c *conn, in, ours hello) error {
	body, err := msgpack.Marshal(&ours)
	if err != nil {
		return err
	}
	c.buf = appendFrame(c.buf, frameHello, 0, body) // first, whoever writes
	r.mu.Lock()
	if err := r.usable(); err != nil && (r.closed || r.isLost) {
		r.mu.Unlock()
		writeHello(c, r.ep.refusal(err))
		return err
	}
	s := r.session
	var stale *session
	if s == nil || s.inc != in.Incarnation {
		// A new run of the peer's daemon: nobody waits for the old one's answers.
		stale = s
		s = &session{ep: r.ep, from: r.id, inc: in.Incarnation, calls: map[uint64]*inbound{}}
		s.ctx, s.cancel = context.WithCancel(r.ep.ctx)
		r.session = s
	}
	r.served[c] = in.Epoch
	r.mu.Unlock()
	if stale != nil {
		stale.cancel()
	}
	var f framer
	if in.Kind == kindBulk {
		f = &servedBulk{r: r, channels: newChannels(c)}
	} else {
		// What the old connection still brought must not come after what this
		// one says.
		s.mu.Lock()
		old := s.ctl
		s.ctl = c
		s.mu.Unlock()
		if old != nil {
			old.fail(errors.New("replaced by a new connection"))
			<-old.done
		}
		f = &answerer{r: r, s: s, parts: parts{}}
	}
	c.run(f)
	c.flushed()
	return nil
}

func (r *remote) detach(c *conn) {
	r.mu.Lock()
	delete(r.served, c)
	r.mu.Unlock()
	r.ep.disown(c.raw)
}

// answerer takes the frames of an accepted control connection: questions.
type answerer struct {
	r      *remote
	s      *session
	parts  parts
	synced map[uint64]bool // ids of a sync that comes in several frames
}

func (a *answerer) lost(c *conn, err error) {
	a.s.mu.Lock()
	if a.s.ctl == c {
		a.s.ctl = nil
	}
	a.s.mu.Unlock()
	a.r.detach(c)
}

func (a *answerer) frame(c *conn, h header, body []byte) error {
	switch h.typ {
	case frameCall:
		total, rest, err := parseTotal(body)
		if err != nil {
			return err
		}
		method, data, err := parseNamed(rest)
		if err != nil {
			return err
		}
		if len(data) < total {
			a.parts.begin(h.id, &part{name: string(method), total: total}, data)
			return nil
		}
		a.s.begin(c, h.id, method, data)
	case frameMore:
		q, err := a.parts.more(h.id, body)
		if q == nil || err != nil {
			return err
		}
		a.s.begin(c, h.id, []byte(q.name), q.data)
	case frameCancel:
		delete(a.parts, h.id)
		a.s.abandon(h.id)
	case frameAck:
		a.s.forget(h.id)
	case frameSync:
		return a.sync(h.id, body)
	case frameTell:
		method, msg, err := parseNamed(body)
		if err != nil {
			return err
		}
		if f := a.s.ep.tell(method); f != nil {
			f(a.s.from, msg)
		}
	default:
		return fmt.Errorf("%w: frame %d on a control connection", errProtocol, h.typ)
	}
	return nil
}

// sync forgets the calls that the peer no longer waits for. next is 0 while
// more ids follow.
func (a *answerer) sync(next uint64, body []byte) error {
	if len(body)%8 != 0 {
		return fmt.Errorf("%w: sync", errProtocol)
	}
	if a.synced == nil {
		a.synced = map[uint64]bool{}
	}
	for ; len(body) > 0; body = body[8:] {
		a.synced[binary.LittleEndian.Uint64(body)] = true
	}
	if next == 0 {
		return nil
	}
	a.s.mu.Lock()
	var drop []uint64
	for id := range a.s.calls {
		if id < next && !a.synced[id] {
			drop = append(drop, id)
		}
	}
	a.s.mu.Unlock()
	a.synced = nil
	for _, id := range drop {
		a.s.abandon(id)
	}
	return nil
}

// begin runs a call unless it is known already.
func (s *session) begin(c *conn, id uint64, method, req []byte) {
	s.mu.Lock()
	if in := s.calls[id]; in != nil {
		answered, status, res := in.answered, in.status, in.res
		s.mu.Unlock()
		if answered {
			// Not from this goroutine: the reader must not wait.
			s.ep.goOn(func() { c.sendReply(s.ctx, id, status, res) })
		}
		return
	}
	in := &inbound{s: s, id: id, handler: s.ep.handler(method), req: req}
	s.calls[id] = in
	in.ctx.parent = s.ctx
	s.mu.Unlock()
	s.ep.pool.do(in)
}

// run is the work of one call, in a goroutine of the pool.
func (in *inbound) run() {
	res, err := in.handler(&in.ctx, in.s.from, in.req)
	in.ctx.cancel()
	status := statusOK
	if err == nil && len(res) > MaxCall {
		res, err = nil, fmt.Errorf("answer of %d bytes: above the limit of %d", len(res), MaxCall)
	}
	if err != nil {
		status, res = statusError, encodeError(err)
	}
	s := in.s
	s.mu.Lock()
	in.answered, in.status, in.res, in.req = true, status, res, nil
	if in.abandoned {
		delete(s.calls, in.id)
	}
	c := s.ctl
	send := c != nil && !in.abandoned
	s.mu.Unlock()
	if send {
		c.sendReply(s.ctx, in.id, status, res)
	}
}

func (c *conn) sendReply(ctx context.Context, id uint64, status byte, res []byte) {
	var n int
	c.lock()
	c.buf, n = appendReply(c.buf, id, status, res)
	c.flush()
	c.sendParts(ctx, frameReplyMore, id, res[n:])
}

// abandon cancels a call whose caller gave up, and forgets it once it ends.
func (s *session) abandon(id uint64) {
	s.mu.Lock()
	in := s.calls[id]
	if in != nil {
		in.abandoned = true
		if in.answered {
			delete(s.calls, id)
		}
	}
	s.mu.Unlock()
	if in != nil {
		in.ctx.cancel()
	}
}

// forget drops an answer that has arrived.
func (s *session) forget(id uint64) {
	s.mu.Lock()
	if in := s.calls[id]; in != nil && in.answered {
		delete(s.calls, id)
	}
	s.mu.Unlock()
}
