package wire

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"

	"unum"
)

// window is how many bytes a receiver may be behind, in each direction of a
// channel. A message costs its length and a little, so that empty ones are
// bounded too. The last message may overdraw.
const (
	window      = 1 << 20
	messageCost = 64
)

// ErrChannelClosed is what a channel returns after its own Close.
var ErrChannelClosed = fmt.Errorf("channel is closed: %w", net.ErrClosed)

// channel is one end of a channel. It reaches its peer through a link.
//
//	open ──peer's close──▶ ended: Recv drains, then io.EOF; Send fails
//	  ├──connection lost──▶ ended: Recv drains, then ErrLinkLost; Send fails
//	  └──Close──▶ closed: all fail
type channel struct {
	s  link
	id uint64

	recvReady chan struct{} // capacity 1
	sendReady chan struct{} // capacity 1

	mu       sync.Mutex
	closed   bool
	ended    error    // what Recv returns after the queue
	credit   int      // what Send may still use
	queue    [][]byte // arrived; from head
	head     int
	queued   int // cost of what is in queue
	consumed int // cost taken by Recv and not yet credited to the peer
}

// link is how one end of a channel reaches the other.
type link interface {
	data(ctx context.Context, id uint64, msg []byte) error
	credit(id uint64, n int)
	closing(id uint64, tell bool, why error)
}

func newChannel(s link, id uint64) *channel {
	return &channel{
		s: s, id: id, credit: window,
		recvReady: make(chan struct{}, 1), sendReady: make(chan struct{}, 1),
	}
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Send implements unum.Channel. After the peer's Close it returns
// io.ErrClosedPipe.
func (c *channel) Send(ctx context.Context, msg []byte) error {
	if len(msg) > unum.MaxMessage {
		return fmt.Errorf("message of %d bytes: above the limit of %d", len(msg), unum.MaxMessage)
	}
	cost := len(msg) + messageCost
	c.mu.Lock()
	for c.credit <= 0 && c.ended == nil && !c.closed {
		c.mu.Unlock()
		select {
		case <-c.sendReady:
		case <-ctx.Done():
			return ctx.Err()
		}
		c.mu.Lock()
	}
	if err := c.sendError(); err != nil {
		c.mu.Unlock()
		signal(c.sendReady) // the next one waiting shall see it too
		return err
	}
	c.credit -= cost
	if c.credit > 0 {
		signal(c.sendReady)
	}
	c.mu.Unlock()
	if err := c.s.data(ctx, c.id, msg); err != nil {
		c.mu.Lock()
		c.credit += cost
		c.mu.Unlock()
		signal(c.sendReady)
		return err
	}
	return nil
}

// sendError says why nothing can be sent any more. mu is held.
func (c *channel) sendError() error {
	switch {
	case c.closed:
		return ErrChannelClosed
	case c.ended == io.EOF:
		return io.ErrClosedPipe
	}
	return c.ended
}

// Recv implements unum.Channel. If the peer does not know the service, the
// error wraps unum.ErrNoMethod.
func (c *channel) Recv(ctx context.Context) ([]byte, error) {
	c.mu.Lock()
	for c.head == len(c.queue) {
		if c.closed || c.ended != nil {
			err := c.ended
			if c.closed {
				err = ErrChannelClosed
			}
			c.mu.Unlock()
			return nil, err
		}
		c.mu.Unlock()
		select {
		case <-c.recvReady:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		c.mu.Lock()
	}
	msg := c.queue[c.head]
	c.queue[c.head] = nil
	if c.head++; c.head == len(c.queue) {
		c.queue, c.head = c.queue[:0], 0
	}
	cost := len(msg) + messageCost
	c.queued -= cost
	c.consumed += cost
	n := 0
	if c.consumed >= window/4 && c.ended == nil {
		n, c.consumed = c.consumed, 0
	}
	c.mu.Unlock()
	if n > 0 {
		c.s.credit(c.id, n)
	}
	return msg, nil
}

// Close implements unum.Channel. What was sent before still arrives.
func (c *channel) Close() error { return c.refuse(nil) }

// refuse closes the channel; the peer's Recv returns why, or io.EOF for nil.
func (c *channel) refuse(why error) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.queue, c.head, c.queued = nil, 0, 0
	tell := c.ended == nil
	c.mu.Unlock()
	signal(c.recvReady)
	signal(c.sendReady)
	c.s.closing(c.id, tell, why)
	return nil
}

// end makes err what Recv returns after the queue.
func (c *channel) end(err error) {
	c.mu.Lock()
	if c.ended == nil {
		c.ended = err
	}
	c.mu.Unlock()
	signal(c.recvReady)
	signal(c.sendReady)
}

// arrived queues a message. It is called by the connection's reader.
func (c *channel) arrived(msg []byte) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	if c.queued += len(msg) + messageCost; c.queued > window+unum.MaxMessage+messageCost {
		c.mu.Unlock()
		return fmt.Errorf("%w: more than the window", errProtocol)
	}
	if c.head > 32 && c.head > len(c.queue)/2 {
		c.queue = c.queue[:copy(c.queue, c.queue[c.head:])]
		c.head = 0
	}
	c.queue = append(c.queue, msg)
	c.mu.Unlock()
	signal(c.recvReady)
	return nil
}

func (c *channel) credited(body []byte) error {
	if len(body) != 4 {
		return fmt.Errorf("%w: credit", errProtocol)
	}
	c.addCredit(int(binary.LittleEndian.Uint32(body)))
	return nil
}

func (c *channel) addCredit(n int) {
	c.mu.Lock()
	c.credit += n
	c.mu.Unlock()
	signal(c.sendReady)
}

// closedByPeer ends the channel; why is empty or an encoded refusal.
func (c *channel) closedByPeer(why []byte) {
	if len(why) == 0 {
		c.end(io.EOF)
		return
	}
	c.end(decodeError(why))
}

// data, credit and closing make channels the link of its channels.

func (s *channels) data(ctx context.Context, id uint64, msg []byte) error {
	if err := s.c.room(ctx); err != nil {
		return err
	}
	s.c.buf = appendFrame(s.c.buf, frameData, id, msg)
	s.c.flush()
	return nil
}

func (s *channels) credit(id uint64, n int) {
	s.c.lock()
	s.c.buf = appendHeader(s.c.buf, frameCredit, id, 4)
	s.c.buf = binary.LittleEndian.AppendUint32(s.c.buf, uint32(n))
	s.c.flush()
}

func (s *channels) closing(id uint64, tell bool, why error) {
	s.remove(id)
	if !tell {
		return
	}
	var body []byte
	if why != nil {
		body = encodeError(why)
	}
	s.c.lock()
	s.c.buf = appendFrame(s.c.buf, frameClose, id, body)
	s.c.flush()
}
