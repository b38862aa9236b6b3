package tty

import (
	"context"
	"io"
	"sync"

	"unum"
)

// network joins fake nodes of one process.
type network struct {
	mu      sync.Mutex
	accepts map[unum.NodeID]map[string]unum.Acceptor
	chans   map[*fakeChannel]struct{}
	wg      sync.WaitGroup
}

func newNetwork() *network {
	return &network{accepts: map[unum.NodeID]map[string]unum.Acceptor{}, chans: map[*fakeChannel]struct{}{}}
}

func (n *network) accept(node unum.NodeID) func(string, unum.Acceptor) {
	return func(s string, a unum.Acceptor) {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.accepts[node] == nil {
			n.accepts[node] = map[string]unum.Acceptor{}
		}
		n.accepts[node][s] = a
	}
}

// cut breaks every channel, as a lost connection does.
func (n *network) cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.chans {
		c.fail(unum.ErrLinkLost)
		c.other.fail(unum.ErrLinkLost)
		delete(n.chans, c)
	}
}

func (n *network) peer(from unum.NodeID) func(unum.NodeID) (unum.Peer, error) {
	return func(to unum.NodeID) (unum.Peer, error) { return &fakePeer{n, from, to}, nil }
}

type fakePeer struct {
	n        *network
	from, to unum.NodeID
}

func (p *fakePeer) Node() unum.NodeID { return p.to }

func (p *fakePeer) Call(context.Context, string, []byte) ([]byte, error) {
	return nil, unum.ErrNoMethod
}

func (p *fakePeer) Open(ctx context.Context, service string, hello []byte) (unum.Channel, error) {
	p.n.mu.Lock()
	defer p.n.mu.Unlock()
	a := p.n.accepts[p.to][service]
	if a == nil {
		return nil, unum.ErrNoNode
	}
	x := &fakeChannel{q: make(chan []byte, 1024), dead: make(chan struct{})}
	y := &fakeChannel{q: make(chan []byte, 1024), dead: make(chan struct{})}
	x.other, y.other = y, x
	p.n.chans[x] = struct{}{}
	p.n.wg.Add(1)
	go func() {
		defer p.n.wg.Done()
		a(context.Background(), p.from, hello, y)
	}()
	return x, nil
}

type fakeChannel struct {
	other *fakeChannel
	q     chan []byte // to be received here
	once  sync.Once
	dead  chan struct{}
	err   error
}

func (c *fakeChannel) fail(err error) {
	c.once.Do(func() { c.err = err; close(c.dead) })
}

func (c *fakeChannel) Send(ctx context.Context, msg []byte) error {
	select {
	case <-c.dead:
		return c.err
	default:
	}
	select {
	case c.other.q <- append([]byte(nil), msg...):
		return nil
	case <-c.dead:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *fakeChannel) Recv(ctx context.Context) ([]byte, error) {
	select {
	case b := <-c.q:
		return b, nil
	default:
	}
	select {
	case b := <-c.q:
		return b, nil
	case <-c.dead:
		return nil, c.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *fakeChannel) Close() error {
	c.fail(io.ErrClosedPipe)
	c.other.fail(io.EOF)
	return nil
}
