package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"

	"unum"
)

// Config says who an endpoint is and how it finds others.
type Config struct {
	Node        unum.NodeID
	Incarnation unum.Incarnation
	Cert        tls.Certificate // of Node
	CA          *x509.CertPool
	Protocol    string // ALPN: "unum/1" for daemons, "unum-fs/1" for file servers
	Version     string // both sides must have the same

	// Lookup returns host:port of a node; ok is false for nodes that are not
	// known (ErrNoNode). It may be called from any goroutine.
	Lookup func(unum.NodeID) (addr string, ok bool)
	// Epoch returns this node's epoch. nil counts as 0.
	Epoch func() unum.Epoch
	// Next is told of a node that connects in a later life than the one that is
	// known here, before it can ask for anything. It must be quick. nil: nobody.
	Next func(id unum.NodeID, epoch unum.Epoch)
	// Dial makes the connections; nil is a net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	Log  *slog.Logger // nil discards
	// Hold lets calls of unknown methods and channels to unknown services wait
	// until Ready: a daemon that was restarted opens its port first, and what
	// its peers repeat then must not fail because a handler is not there yet.
	Hold bool
}

// Endpoint is a node's end of all its connections. Its methods may be called
// from any goroutine.
type Endpoint struct {
	cfg    Config
	log    *slog.Logger
	ctx    context.Context // of everything that runs; ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	pool   workers
	hears  atomic.Bool     // Hear was called
	ready  context.Context // ends with Ready
	isNow  context.CancelFunc

	// mu guards the tables. Lock order: remote.mu, then mu; conn.mu last.
	mu        sync.RWMutex
	closed    bool
	handlers  map[string]unum.Handler
	tells     map[string]func(from unum.NodeID, msg []byte)
	acceptors map[string]unum.Acceptor
	routes    map[string]func(net.Conn)
	remotes   map[unum.NodeID]*remote
	watchers  []func(unum.NodeID, unum.Incarnation, bool, bool)
	socks     map[net.Conn]struct{} // accepted or dialed, to be closed by Close
	listeners map[net.Listener]struct{}
}

// ErrClosed is what calls and channels return once the endpoint is closed.
var ErrClosed = fmt.Errorf("endpoint is closed: %w", net.ErrClosed)

// New makes an endpoint. It dials nobody and listens nowhere by itself.
func New(cfg Config) (*Endpoint, error) {
	fail := func(err error) (*Endpoint, error) {
		return nil, &unum.Error{Op: "make endpoint", Node: cfg.Node, Err: err}
	}
	switch {
	case cfg.Node == "":
		return fail(errors.New("no node name"))
	case cfg.Protocol == "":
		return fail(errors.New("no protocol"))
	case cfg.CA == nil || len(cfg.Cert.Certificate) == 0:
		return fail(errors.New("no certificate"))
	}
	leaf, err := x509.ParseCertificate(cfg.Cert.Certificate[0])
	if err != nil {
		return fail(err)
	}
	if name, err := nodeOf(leaf); err != nil {
		return fail(err)
	} else if name != cfg.Node {
		return fail(fmt.Errorf("the certificate is that of %s", name))
	}
	if cfg.Epoch == nil {
		cfg.Epoch = func() unum.Epoch { return 0 }
	}
	if cfg.Lookup == nil {
		cfg.Lookup = func(unum.NodeID) (string, bool) { return "", false }
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{KeepAlive: -1, Timeout: dialMax}).DialContext
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	e := &Endpoint{
		cfg: cfg, log: cfg.Log,
		handlers:  map[string]unum.Handler{},
		tells:     map[string]func(unum.NodeID, []byte){},
		acceptors: map[string]unum.Acceptor{},
		routes:    map[string]func(net.Conn){},
		remotes:   map[unum.NodeID]*remote{},
		socks:     map[net.Conn]struct{}{},
		listeners: map[net.Listener]struct{}{},
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.pool.wg = &e.wg
	e.ready, e.isNow = context.WithCancel(context.Background())
	if !cfg.Hold {
		e.isNow()
	}
	return e, nil
}

// Node returns the endpoint's own name.
func (e *Endpoint) Node() unum.NodeID { return e.cfg.Node }

// Handle registers the handler of a method. Methods have at most 255 bytes.
func (e *Endpoint) Handle(method string, h unum.Handler) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.handlers[method] = h
}

// Ready says that all handlers and acceptors are registered. See Config.Hold.
func (e *Endpoint) Ready() { e.isNow() }

// HandleTell registers what takes the one-way messages of a method. f runs in
// the connection's reader or in Hear: it must be quick and wait for nothing; msg is its
// own.
func (e *Endpoint) HandleTell(method string, f func(from unum.NodeID, msg []byte)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.tells[method] = f
}

// Accept registers who serves the channels of a service.
func (e *Endpoint) Accept(service string, a unum.Acceptor) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.acceptors[service] = a
}

// OnPeer registers f for changes of the control connections that this
// endpoint dials: f(id, incarnation, true) once one stands, and with false as
// soon as it is gone. Events of one peer come one after the other; f must be
// quick.
func (e *Endpoint) OnPeer(f func(id unum.NodeID, inc unum.Incarnation, connected bool)) {
	e.OnLink(func(id unum.NodeID, inc unum.Incarnation, connected, _ bool) {
		if inc != 0 {
			f(id, inc, connected)
		}
	})
}

// OnLink is OnPeer for failure detection. It is also told of attempts that
// failed, with inc 0. answered says that the event is a sign of life of the
// peer's host: it refused, reset or ended the connection, rather than being
// silent.
func (e *Endpoint) OnLink(f func(id unum.NodeID, inc unum.Incarnation, connected, answered bool)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.watchers = append(e.watchers, f)
}

func (e *Endpoint) peerChanged(id unum.NodeID, inc unum.Incarnation, connected bool, err error) {
	answered := connected || hostAnswered(err)
	e.mu.RLock()
	w := e.watchers
	e.mu.RUnlock()
	for _, f := range w {
		f(id, inc, connected, answered)
	}
}

// handler returns who answers a method; for unknown ones, what says so.
func (e *Endpoint) handler(method []byte) unum.Handler {
	e.mu.RLock()
	h := e.handlers[string(method)]
	e.mu.RUnlock()
	if h != nil {
		return h
	}
	name := string(method)
	return func(ctx context.Context, from unum.NodeID, req []byte) ([]byte, error) {
		e.held(ctx)
		e.mu.RLock()
		h := e.handlers[name]
		e.mu.RUnlock()
		if h == nil {
			return nil, fmt.Errorf("%w: %s", unum.ErrNoMethod, name)
		}
		return h(ctx, from, req)
	}
}

// held waits until the endpoint is ready, or ctx or the endpoint end.
func (e *Endpoint) held(ctx context.Context) {
	select {
	case <-e.ready.Done():
	case <-ctx.Done():
	case <-e.ctx.Done():
	}
}

func (e *Endpoint) tell(method []byte) func(unum.NodeID, []byte) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.tells[string(method)]
}

// serve runs the acceptor of a channel; unknown services refuse it.
func (e *Endpoint) serve(service string, from unum.NodeID, first []byte, ch *channel) {
	e.mu.RLock()
	a := e.acceptors[service]
	e.mu.RUnlock()
	if a == nil {
		e.held(e.ctx)
		e.mu.RLock()
		a = e.acceptors[service]
		e.mu.RUnlock()
	}
	if a == nil {
		ch.refuse(fmt.Errorf("%w: service %s", unum.ErrNoMethod, service))
		return
	}
	a(e.ctx, from, first, ch)
}

// Peer returns a node as others see it. For the endpoint's own name calls and
// channels stay in the process. The node need not be known yet.
func (e *Endpoint) Peer(id unum.NodeID) unum.Peer {
	if id == e.cfg.Node {
		return self{e}
	}
	return e.remote(id)
}

// remote returns the peer's record, made when it is first asked for.
func (e *Endpoint) remote(id unum.NodeID) *remote {
	e.mu.RLock()
	r := e.remotes[id]
	e.mu.RUnlock()
	if r != nil {
		return r
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if r := e.remotes[id]; r != nil {
		return r
	}
	r = newRemote(e, id)
	e.remotes[id] = r
	if e.closed {
		r.closed = true
	} else {
		e.wg.Add(1)
		go r.keep()
	}
	return r
}

// Tell sends a one-way message to a peer if it is connected; otherwise, or
// when the connection is stuck, the message is dropped, and false returned.
// One that was sent may be lost with its connection, and two may overtake each
// other when another connection than before is used.
// Either way the endpoint goes on trying to connect. It never waits.
func (e *Endpoint) Tell(id unum.NodeID, method string, msg []byte) bool {
	if id == e.cfg.Node {
		if f := e.tell([]byte(method)); f != nil {
			f(id, append([]byte(nil), msg...))
		}
		return true
	}
	return e.remote(id).tell(method, msg)
}

// Lost says that the life of a node with this epoch, and any before, is over.
// Calls and channels towards it fail with ErrNodeLost, its own connections are
// closed, and what it had asked for is cancelled, until the node is back with a
// higher epoch: it connects, or Back is called.
func (e *Endpoint) Lost(id unum.NodeID, epoch unum.Epoch) {
	if id != e.cfg.Node {
		e.remote(id).setLost(epoch)
	}
}

// Back says that a node lives again, with this epoch.
func (e *Endpoint) Back(id unum.NodeID, epoch unum.Epoch) {
	if id != e.cfg.Node {
		e.remote(id).back(epoch)
	}
}

// Forget closes the connections to a node that left and fails what waits for
// it with ErrNoNode.
func (e *Endpoint) Forget(id unum.NodeID) {
	e.mu.RLock()
	r := e.remotes[id]
	e.mu.RUnlock()
	if r != nil {
		r.drop(unum.ErrNoNode)
	}
}

// Close ends all connections and waits until every goroutine of the endpoint
// has ended: handlers and acceptors, whose contexts end, among them. What
// waits for peers fails with ErrClosed.
func (e *Endpoint) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		e.wg.Wait()
		return nil
	}
	e.closed = true
	for l := range e.listeners {
		l.Close()
	}
	for c := range e.socks {
		c.Close()
	}
	remotes := make([]*remote, 0, len(e.remotes))
	for _, r := range e.remotes {
		remotes = append(remotes, r)
	}
	e.mu.Unlock()
	e.cancel()
	for _, r := range remotes {
		r.close()
	}
	e.pool.close()
	e.wg.Wait()
	return nil
}

// own notes a socket that Close must close. It returns false, and closes the
// socket, if the endpoint is closed already.
func (e *Endpoint) own(c net.Conn) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		c.Close()
		return false
	}
	e.socks[c] = struct{}{}
	return true
}

func (e *Endpoint) disown(c net.Conn) {
	e.mu.Lock()
	delete(e.socks, c)
	e.mu.Unlock()
}

// goOn starts a goroutine that Close waits for, unless the endpoint is closed.
func (e *Endpoint) goOn(f func()) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.closed {
		return false
	}
	e.wg.Add(1)
	go func() {
		defer e.wg.Done()
		f()
	}()
	return true
}
