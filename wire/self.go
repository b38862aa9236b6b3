package wire

import (
	"bytes"
	"context"
	"io"

	"unum"
)

// self is the endpoint's own node: calls and channels that stay in the
// process, with the same rules.
type self struct{ e *Endpoint }

func (p self) Node() unum.NodeID { return p.e.cfg.Node }

// Call implements unum.Peer.
func (p self) Call(ctx context.Context, method string, req []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	h := p.e.handler([]byte(method))
	type answer struct {
		res []byte
		err error
	}
	done := make(chan answer, 1)
	req = bytes.Clone(req) // the caller may leave before the handler does
	hctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(p.e.ctx, cancel)
	ok := p.e.goOn(func() {
		defer cancel()
		defer stop()
		res, err := h(hctx, p.Node(), req)
		done <- answer{res, err}
	})
	if !ok {
		stop()
		cancel()
		return nil, &unum.Error{Op: "call " + method, Node: p.Node(), Err: ErrClosed}
	}
	select {
	case a := <-done:
		return a.res, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-p.e.ctx.Done():
		return nil, &unum.Error{Op: "call " + method, Node: p.Node(), Err: ErrClosed}
	}
}

// Open implements unum.Peer.
func (p self) Open(ctx context.Context, service string, first []byte) (unum.Channel, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	near, far := p.e.pair()
	first = bytes.Clone(first)
	if !p.e.goOn(func() { p.e.serve(service, p.Node(), first, far) }) {
		near.Close()
		return nil, &unum.Error{Op: "open " + service, Node: p.Node(), Err: ErrClosed}
	}
	return near, nil
}

// inner is the link of a channel whose other end is in the process.
type inner struct {
	other *channel
	stop  func() bool // releases what waits for the endpoint's end
}

func (e *Endpoint) pair() (a, b *channel) {
	la, lb := &inner{}, &inner{}
	a, b = newChannel(la, 0), newChannel(lb, 0)
	stop := context.AfterFunc(e.ctx, func() {
		a.end(linkLost(ErrClosed))
		b.end(linkLost(ErrClosed))
	})
	*la, *lb = inner{b, stop}, inner{a, stop}
	return a, b
}

func (l *inner) data(_ context.Context, _ uint64, msg []byte) error {
	return l.other.arrived(bytes.Clone(msg))
}

func (l *inner) credit(_ uint64, n int) { l.other.addCredit(n) }

func (l *inner) closing(_ uint64, tell bool, why error) {
	if why == nil {
		why = io.EOF
	}
	if tell {
		l.other.end(why)
	}
	l.stop() // nothing waits any more: the other end has ended too
}
