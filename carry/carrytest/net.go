// Package carrytest joins nodes in one process, for the tests of kinds: peers
// whose links can be cut, and a keeper that survives a restart of its node.
package carrytest

import (
	"context"
	"fmt"
	"io"
	"sync"

	"unum"
)

// Net is a set of nodes that reach each other.
type Net struct {
	mu    sync.Mutex
	nodes map[unum.NodeID]*Node
	links map[*pipe]bool
}

// NewNet returns an empty one.
func NewNet() *Net {
	return &Net{nodes: map[unum.NodeID]*Node{}, links: map[*pipe]bool{}}
}

// Node returns the node of that name, which exists from then on. It is reached
// by nobody before it has handlers.
func (n *Net) Node(id unum.NodeID) *Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	nd := n.nodes[id]
	if nd == nil {
		nd = &Node{net: n, id: id}
		nd.Reset()
		n.nodes[id] = nd
	}
	return nd
}

// Cut breaks every channel there is now. New ones can be opened at once.
func (n *Net) Cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for p := range n.links {
		p.cut()
	}
	clear(n.links)
}

// Channels is how many channels are open.
func (n *Net) Channels() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.links)
}

// Node is one node's endpoint. Its Handle and Accept are those of an Env.
type Node struct {
	net *Net
	id  unum.NodeID

	mu     sync.Mutex
	calls  map[string]unum.Handler
	accept map[string]unum.Acceptor
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	down   bool
	// while handlers of the life before end
	resetting bool
	lost      bool
}

// Reset forgets all handlers, as a restart of the daemon does, and waits for
// those that run.
func (nd *Node) Reset() {
	nd.mu.Lock()
	if nd.cancel != nil {
		nd.cancel()
	}
	nd.calls, nd.accept = map[string]unum.Handler{}, map[string]unum.Acceptor{}
	nd.ctx, nd.cancel = context.WithCancel(context.Background())
	nd.resetting = true
	nd.mu.Unlock()
	nd.wg.Wait()
	nd.mu.Lock()
	nd.resetting = false
	nd.mu.Unlock()
}

// Down makes the node unreachable, or reachable again. Lost makes it declared
// lost.
func (nd *Node) Down(down bool) { nd.mu.Lock(); nd.down = down; nd.mu.Unlock() }
func (nd *Node) Lost()          { nd.mu.Lock(); nd.lost = true; nd.mu.Unlock() }

func (nd *Node) Handle(method string, h unum.Handler) {
	nd.mu.Lock()
	defer nd.mu.Unlock()
	nd.calls[method] = h
}

func (nd *Node) Accept(service string, a unum.Acceptor) {
	nd.mu.Lock()
	defer nd.mu.Unlock()
	nd.accept[service] = a
}

// Peer returns another node as this one sees it.
func (nd *Node) Peer(id unum.NodeID) (unum.Peer, error) {
	nd.net.mu.Lock()
	defer nd.net.mu.Unlock()
	to := nd.net.nodes[id]
	if to == nil {
		return nil, fmt.Errorf("%s: %w", id, unum.ErrNoNode)
	}
	return &peer{from: nd, to: to}, nil
}

type peer struct{ from, to *Node }

func (p *peer) Node() unum.NodeID { return p.to.id }

// begin counts a handler of the node.
func (nd *Node) begin() (ctx context.Context, err error) {
	nd.mu.Lock()
	defer nd.mu.Unlock()
	switch {
	case nd.lost:
		return nil, unum.ErrNodeLost
	case nd.down, nd.resetting:
		return nil, unum.ErrLinkLost
	}
	nd.wg.Add(1)
	return nd.ctx, nil
}

func (p *peer) Call(ctx context.Context, method string, req []byte) ([]byte, error) {
	hctx, err := p.to.begin()
	if err != nil {
		return nil, err
	}
	defer p.to.wg.Done()
	p.to.mu.Lock()
	h := p.to.calls[method]
	p.to.mu.Unlock()
	if h == nil {
		return nil, unum.ErrNoMethod
	}
	hctx, cancel := context.WithCancel(hctx)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	return h(hctx, p.from.id, append([]byte(nil), req...))
}

func (p *peer) Open(ctx context.Context, service string, hello []byte) (unum.Channel, error) {
	hctx, err := p.to.begin()
	if err != nil {
		return nil, err
	}
	p.to.mu.Lock()
	a := p.to.accept[service]
	p.to.mu.Unlock()
	near, far := newPipe(p.from.net)
	if a == nil {
		p.to.wg.Done()
		far.Close()
		return near, nil
	}
	go func() {
		defer p.to.wg.Done()
		a(hctx, p.from.id, append([]byte(nil), hello...), far)
	}()
	return near, nil
}

// window is how far a channel's sender may be ahead of its receiver.
const window = 512 << 10

// pipe is one channel: two ends and a queue each way.
type pipe struct {
	net *Net

	mu     sync.Mutex
	lost   bool
	closed int
	queue  [2][][]byte
	bytes  [2]int
	shut   [2]bool
	wake   chan struct{}
}

type end struct {
	p    *pipe
	mine int // index of the queue that this end receives from
}

func newPipe(n *Net) (*end, *end) {
	p := &pipe{net: n, wake: make(chan struct{})}
	n.mu.Lock()
	n.links[p] = true
	n.mu.Unlock()
	return &end{p, 0}, &end{p, 1}
}

// changed wakes all waiters. Preconditions: mu is held.
func (p *pipe) changed() {
	close(p.wake)
	p.wake = make(chan struct{})
}

func (p *pipe) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lost = true
	p.changed()
}

func (e *end) Send(ctx context.Context, msg []byte) error {
	if len(msg) > unum.MaxMessage {
		return fmt.Errorf("carrytest: message of %d bytes", len(msg))
	}
	p, to := e.p, 1-e.mine
	for {
		p.mu.Lock()
		switch {
		case p.lost:
			p.mu.Unlock()
			return unum.ErrLinkLost
		case p.shut[0] || p.shut[1]:
			p.mu.Unlock()
			return io.ErrClosedPipe
		case p.bytes[to] < window:
			p.queue[to] = append(p.queue[to], append([]byte(nil), msg...))
			p.bytes[to] += len(msg)
			p.changed()
			p.mu.Unlock()
			return nil
		}
		wake := p.wake
		p.mu.Unlock()
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (e *end) Recv(ctx context.Context) ([]byte, error) {
	p := e.p
	for {
		p.mu.Lock()
		if p.lost {
			p.mu.Unlock()
			return nil, unum.ErrLinkLost
		}
		if q := p.queue[e.mine]; len(q) > 0 {
			msg := q[0]
			p.queue[e.mine] = q[1:]
			p.bytes[e.mine] -= len(msg)
			p.changed()
			p.mu.Unlock()
			return msg, nil
		}
		if p.shut[0] || p.shut[1] {
			p.mu.Unlock()
			return nil, io.EOF
		}
		wake := p.wake
		p.mu.Unlock()
		select {
		case <-wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (e *end) Close() error {
	p := e.p
	p.mu.Lock()
	if p.shut[e.mine] {
		p.mu.Unlock()
		return nil
	}
	p.shut[e.mine] = true
	p.changed()
	both := p.shut[0] && p.shut[1]
	p.mu.Unlock()
	if both {
		p.net.mu.Lock()
		delete(p.net.links, p)
		p.net.mu.Unlock()
	}
	return nil
}
