package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"unum"
)

// handshakeMax bounds TLS handshake and hello.
const handshakeMax = 5 * time.Second

// dialMax bounds one attempt to reach a port: a node that comes back is not
// missed for longer.
const dialMax = time.Second

// Route hands every connection whose ClientHello offers this ALPN first to f,
// with nothing read from it; "" are those that offer none. f owns the
// connection and runs in a goroutine that Close waits for.
func (e *Endpoint) Route(alpn string, f func(net.Conn)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.routes[alpn] = f
}

// RouteTLS ends mutual TLS for connections of this ALPN, dials the plain end
// and pipes until both sides are through.
func (e *Endpoint) RouteTLS(alpn string, dial func() (net.Conn, error)) {
	conf := serverTLS(&e.cfg.Cert, e.cfg.CA, alpn)
	e.Route(alpn, func(raw net.Conn) {
		defer raw.Close()
		if !e.own(raw) {
			return
		}
		defer e.disown(raw)
		tune(raw)
		t := tls.Server(raw, conf)
		ctx, stop := context.WithTimeout(e.ctx, handshakeMax)
		err := t.HandshakeContext(ctx)
		stop()
		if err != nil {
			e.log.Info("connection refused", "alpn", alpn, "addr", raw.RemoteAddr().String(), "err", err)
			return
		}
		plain, err := dial()
		if err != nil {
			e.log.Debug("no one behind the port", "alpn", alpn, "err", err)
			return
		}
		defer plain.Close()
		if !e.own(plain) {
			return
		}
		defer e.disown(plain)
		pipe(t, plain)
	})
}

// pipe copies both ways until both are through. An end of input is passed on;
// an error ends both.
func pipe(a *tls.Conn, b net.Conn) {
	var wg sync.WaitGroup
	one := func(dst, src net.Conn) {
		_, err := io.Copy(dst, src)
		h, ok := dst.(interface{ CloseWrite() error })
		if err != nil || !ok || h.CloseWrite() != nil {
			a.NetConn().Close()
			b.Close()
		}
	}
	wg.Go(func() { one(a, b) })
	one(b, a)
	wg.Wait()
}

// Dial connects to the port of a node with an ALPN of another protocol than
// the endpoint's ("" for none), with mutual TLS: what RouteTLS answers there.
func (e *Endpoint) Dial(ctx context.Context, id unum.NodeID, alpn string) (net.Conn, error) {
	c, err := e.dial(ctx, id, alpn)
	if err != nil {
		return nil, &unum.Error{Op: "dial", Node: id, Err: err}
	}
	return c.tls, nil
}

type dialed struct {
	tls *tls.Conn
	out *outBuffer
	raw net.Conn
}

// dial connects and does the TLS handshake.
func (e *Endpoint) dial(ctx context.Context, id unum.NodeID, alpn string) (dialed, error) {
	addr, ok := e.cfg.Lookup(id)
	if !ok {
		return dialed{}, unum.ErrNoNode
	}
	raw, err := e.cfg.Dial(ctx, "tcp", addr)
	if err != nil {
		return dialed{}, err
	}
	tune(raw)
	out := &outBuffer{Conn: raw}
	t := tls.Client(out, clientTLS(&e.cfg.Cert, e.cfg.CA, id, alpn))
	if err := t.HandshakeContext(ctx); err != nil {
		raw.Close()
		return dialed{}, err
	}
	return dialed{t, out, raw}, nil
}

// Serve accepts connections until the listener is closed, by Close or by its
// owner; it then returns nil. Several listeners may be served.
func (e *Endpoint) Serve(l net.Listener) error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		l.Close()
		return ErrClosed
	}
	e.listeners[l] = struct{}{}
	e.wg.Add(1)
	e.mu.Unlock()
	defer e.wg.Done()
	defer func() {
		e.mu.Lock()
		delete(e.listeners, l)
		e.mu.Unlock()
	}()
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			e.ServeConn(c)
		case errors.Is(err, net.ErrClosed):
			return nil
		case e.ctx.Err() != nil:
			return nil
		default:
			// Out of descriptors, or the like: it may pass.
			e.log.Warn("accept failed", "err", err)
			select {
			case <-e.ctx.Done():
				return nil
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
}

// ServeConn serves a connection that somebody else accepted, with nothing read
// from it. It returns at once.
func (e *Endpoint) ServeConn(c net.Conn) {
	if !e.own(c) {
		return
	}
	if !e.goOn(func() { e.incoming(c) }) {
		e.disown(c)
		c.Close()
	}
}

// incoming finds out what a connection is for. It returns when somebody else
// takes care of the connection.
func (e *Endpoint) incoming(c net.Conn) {
	alpn := e.cfg.Protocol
	if t, ok := c.(*net.TCPConn); ok {
		t.SetReadDeadline(time.Now().Add(handshakeMax))
		var err error
		if alpn, err = peekALPN(t); err != nil {
			e.log.Debug("connection refused", "addr", c.RemoteAddr().String(), "err", err)
			e.disown(c)
			c.Close()
			return
		}
		t.SetReadDeadline(time.Time{})
	}
	if alpn != e.cfg.Protocol {
		e.mu.RLock()
		f := e.routes[alpn]
		e.mu.RUnlock()
		if f != nil {
			e.disown(c)
			f(c)
			return
		}
		// The handshake below then tells the client that nothing is agreed on.
	}
	if err := e.accept(c); err != nil {
		level := slog.LevelInfo
		if errors.Is(err, errNotHeard) {
			level = slog.LevelDebug // it is asked again
		}
		e.log.Log(e.ctx, level, "connection refused", "addr", c.RemoteAddr().String(), "alpn", alpn, "err", err)
		e.disown(c)
		c.Close()
	}
}

// accept does TLS and hello with a peer that dialed.
func (e *Endpoint) accept(raw net.Conn) error {
	tune(raw)
	ctx, stop := context.WithTimeout(e.ctx, handshakeMax)
	defer stop()
	out := &outBuffer{Conn: raw}
	t := tls.Server(out, serverTLS(&e.cfg.Cert, e.cfg.CA, e.cfg.Protocol))
	if err := t.HandshakeContext(ctx); err != nil {
		return err
	}
	if t.ConnectionState().NegotiatedProtocol != e.cfg.Protocol {
		return fmt.Errorf("%w: no common protocol", errProtocol)
	}
	from, err := nodeOf(t.ConnectionState().PeerCertificates[0])
	if err != nil {
		return err
	}
	raw.SetDeadline(time.Now().Add(handshakeMax))
	c := newConn(e, from, raw, out, t)
	in, err := readHello(c)
	if err != nil {
		return err
	}
	if err := e.judge(from, in); err != nil {
		writeHello(c, e.refusal(err))
		return fmt.Errorf("%s: %w", from, err)
	}
	raw.SetDeadline(time.Time{})
	if in.Kind == kindQuiet {
		return e.remote(from).hush(c, e.hello(in.Kind))
	}
	return e.remote(from).attach(c, in, e.hello(in.Kind))
}
