package wire

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"unum"
)

// bulkSlot is one of the bulk connections that this endpoint dials to a peer.
type bulkSlot struct {
	sem chan struct{} // capacity 1: held while dialing

	// guarded by remote.mu
	conn     *conn
	channels *channels
}

// Open implements unum.Peer. It waits while there is no connection to the
// peer, but not for the peer's answer.
func (r *remote) Open(ctx context.Context, service string, first []byte) (unum.Channel, error) {
	if len(first) > unum.MaxMessage || len(service) > 255 {
		return nil, r.wrap("open "+service, fmt.Errorf("hello of %d bytes: above the limit of %d", len(first), unum.MaxMessage))
	}
	r.mu.Lock()
	s := &r.bulk[r.nextBulk%bulkConns]
	r.nextBulk++
	r.mu.Unlock()
	for {
		chs, err := r.bulkConn(ctx, s)
		if err != nil {
			if ctx.Err() == nil {
				err = r.wrap("open "+service, err)
			}
			return nil, err
		}
		// A connection that just died is dialed again.
		if ch := chs.open(service, first); ch != nil {
			return ch, nil
		}
		<-chs.c.done
	}
}

// bulkConn returns the slot's connection, dialed if need be.
func (r *remote) bulkConn(ctx context.Context, s *bulkSlot) (*channels, error) {
	pause := time.Duration(0)
	for {
		r.mu.Lock()
		err, chs, gone := r.usable(), s.channels, r.gone
		r.mu.Unlock()
		if err != nil {
			return nil, err
		}
		if chs != nil {
			return chs, nil
		}
		select {
		case s.sem <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-gone.Done():
			continue
		}
		chs, err = r.dialBulk(ctx, s, gone)
		<-s.sem
		if err == nil {
			return chs, nil
		}
		var refused refusedError
		switch {
		case errors.As(err, &refused):
			return nil, refused.error
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, unum.ErrNoNode), errors.Is(err, ErrClosed):
			return nil, err
		}
		pause = min(max(2*pause, 2*time.Millisecond), redialMax)
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
		case <-gone.Done():
		}
		t.Stop()
	}
}

func (r *remote) dialBulk(ctx context.Context, s *bulkSlot, gone context.Context) (*channels, error) {
	r.mu.Lock()
	chs := s.channels
	r.mu.Unlock()
	if chs != nil {
		return chs, nil
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(gone, stop)()
	c, _, err := r.ep.connect(ctx, r.id, kindBulk)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.usable(); err != nil {
		r.ep.disown(c.raw)
		c.raw.Close()
		return nil, err
	}
	chs = newChannels(c)
	s.conn, s.channels = c, chs
	// Close has not passed drop yet, which needs mu: its wait is still to come.
	c.run(&dialedBulk{r: r, s: s, channels: chs})
	return chs, nil
}

// dialedBulk takes the frames of a bulk connection at the end that dialed.
type dialedBulk struct {
	r *remote
	s *bulkSlot
	*channels
}

func (d *dialedBulk) lost(c *conn, err error) {
	d.r.mu.Lock()
	if d.s.conn == c {
		d.s.conn, d.s.channels = nil, nil
	}
	d.r.mu.Unlock()
	d.channels.lost(c, err)
	d.r.ep.disown(c.raw)
}

// servedBulk takes them at the end that accepted, and opens.
type servedBulk struct {
	r *remote
	*channels
}

func (d *servedBulk) lost(c *conn, err error) {
	d.channels.lost(c, err)
	d.r.detach(c)
}

func (d *servedBulk) frame(c *conn, h header, body []byte) error {
	if h.typ != frameOpen {
		return d.channels.frame(c, h, body)
	}
	name, first, err := parseNamed(body)
	if err != nil {
		return err
	}
	ch, err := d.channels.accept(h.id)
	if err != nil {
		return err
	}
	service := string(name)
	d.r.ep.goOn(func() { d.r.ep.serve(service, d.r.id, first, ch) })
	return nil
}

// channels are the channels of one bulk connection.
type channels struct {
	c *conn

	mu   sync.Mutex
	err  error // the connection is gone
	next uint64
	m    map[uint64]*channel
}

func newChannels(c *conn) *channels {
	return &channels{c: c, m: map[uint64]*channel{}}
}

// open begins a channel; nil if the connection is gone.
func (s *channels) open(service string, first []byte) unum.Channel {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return nil
	}
	s.next++
	ch := newChannel(s, s.next)
	s.m[ch.id] = ch
	s.mu.Unlock()
	s.c.lock()
	s.c.buf = appendNamed(s.c.buf, frameOpen, ch.id, service, first)
	s.c.flush()
	return ch
}

func (s *channels) accept(id uint64) (*channel, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id <= s.next {
		return nil, fmt.Errorf("%w: a channel is opened twice", errProtocol)
	}
	s.next = id
	ch := newChannel(s, id)
	s.m[id] = ch
	return ch, nil
}

func (s *channels) get(id uint64) *channel {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[id]
}

func (s *channels) remove(id uint64) {
	s.mu.Lock()
	delete(s.m, id)
	s.mu.Unlock()
}

func (s *channels) lost(c *conn, err error) {
	err = linkLost(err)
	s.mu.Lock()
	s.err = err
	all := s.m
	s.m = map[uint64]*channel{}
	s.mu.Unlock()
	for _, ch := range all {
		ch.end(err)
	}
}

// frame takes the frames that both ends get. Those of channels that were
// closed here may still come and are dropped.
func (s *channels) frame(c *conn, h header, body []byte) error {
	ch := s.get(h.id)
	switch h.typ {
	case frameData:
		if ch != nil {
			return ch.arrived(body)
		}
	case frameCredit:
		if ch != nil {
			return ch.credited(body)
		}
	case frameClose:
		if ch != nil {
			s.remove(h.id)
			ch.closedByPeer(body)
		}
	default:
		return fmt.Errorf("%w: frame %d on a bulk connection", errProtocol, h.typ)
	}
	return nil
}
