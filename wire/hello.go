package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"reflect"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"unum"
)

// hello is the first frame in each direction.
type hello struct {
	Node        unum.NodeID      `msgpack:"n"`
	Incarnation unum.Incarnation `msgpack:"i"`
	Epoch       unum.Epoch       `msgpack:"e"`
	Version     string           `msgpack:"v"`
	Kind        connKind         `msgpack:"k,omitempty"`
	Refused     []byte           `msgpack:"r,omitempty"` // encodeError
}

// connKind is what a connection carries; the one who dials says it.
type connKind uint8

const (
	kindControl connKind = iota // calls
	kindBulk                    // channels
	kindQuiet                   // one-way messages that nobody waits for
)

func (e *Endpoint) hello(k connKind) hello {
	return hello{Node: e.cfg.Node, Incarnation: e.cfg.Incarnation, Epoch: e.cfg.Epoch(), Version: e.cfg.Version, Kind: k}
}

func (e *Endpoint) refusal(err error) hello {
	h := e.hello(kindControl)
	h.Refused = encodeError(err)
	return h
}

func writeHello(c *conn, h hello) error {
	b, err := msgpack.Marshal(&h)
	if err != nil {
		return err
	}
	return c.out.write(c.tls, appendFrame(nil, frameHello, 0, b))
}

func readHello(c *conn) (hello, error) {
	var hb [headerSize]byte
	fh, body, err := c.readFrame(&hb)
	if err != nil {
		return hello{}, err
	}
	var h hello
	if fh.typ != frameHello {
		return hello{}, fmt.Errorf("%w: no hello", errProtocol)
	}
	if err := msgpack.Unmarshal(body, &h); err != nil {
		return hello{}, fmt.Errorf("%w: %w", errProtocol, err)
	}
	return h, nil
}

// judge says why a peer with that hello is refused, or nil.
func (e *Endpoint) judge(from unum.NodeID, h hello) error {
	if h.Node != from {
		return fmt.Errorf("%w: %s says it is %s", unum.ErrDenied, from, h.Node)
	}
	if h.Version != e.cfg.Version {
		return fmt.Errorf("%w: %s runs %s, %s runs %s", unum.ErrVersion, from, h.Version, e.cfg.Node, e.cfg.Version)
	}
	return e.remote(from).admits(h.Epoch)
}

// connect dials a peer of the endpoint's own protocol and exchanges hellos.
// A refusal (see refused) will not go away by trying again soon.
func (e *Endpoint) connect(ctx context.Context, id unum.NodeID, k connKind) (*conn, hello, error) {
	ctx, stop := context.WithTimeout(ctx, handshakeMax)
	defer stop()
	d, err := e.dial(ctx, id, e.cfg.Protocol)
	if err != nil {
		return nil, hello{}, classify(err)
	}
	if !e.own(d.raw) {
		return nil, hello{}, ErrClosed
	}
	c := newConn(e, id, d.raw, d.out, d.tls)
	undo := context.AfterFunc(ctx, func() { d.raw.Close() })
	h, err := e.greet(c, k)
	if !undo() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		e.disown(d.raw)
		d.raw.Close()
		return nil, hello{}, classify(err)
	}
	return c, h, nil
}

func (e *Endpoint) greet(c *conn, k connKind) (hello, error) {
	c.raw.SetDeadline(time.Now().Add(handshakeMax))
	if err := writeHello(c, e.hello(k)); err != nil {
		return hello{}, err
	}
	h, err := readHello(c)
	if err != nil {
		return hello{}, err
	}
	if h.Refused != nil {
		return hello{}, refusedError{decodeError(h.Refused)}
	}
	if err := e.judge(c.peer, h); err != nil {
		return hello{}, refusedError{err}
	}
	return h, c.raw.SetDeadline(time.Time{})
}

// refusedError marks what trying again does not help.
type refusedError struct{ error }

func (r refusedError) Unwrap() error { return r.error }

// classify turns failures of TLS that mean "not you" into refusals.
func classify(err error) error {
	var verify *tls.CertificateVerificationError
	var host x509.HostnameError
	switch {
	case errors.As(err, &verify), errors.As(err, &host):
		return refusedError{fmt.Errorf("%w: %w", unum.ErrDenied, err)}
	}
	switch alertOf(err) {
	case 120: // no_application_protocol
		return refusedError{fmt.Errorf("%w: %w", unum.ErrVersion, err)}
	case 42, 43, 44, 45, 46, 48, 49, 116: // about certificates: RFC 8446, 6.2
		return refusedError{fmt.Errorf("%w: %w", unum.ErrDenied, err)}
	}
	return err
}

// alertOf returns the TLS alert that the peer sent, or -1. crypto/tls gives it
// as an unexported integer type inside a net.OpError "remote error".
func alertOf(err error) int {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return -1
	}
	if v := reflect.ValueOf(op.Err); v.Kind() == reflect.Uint8 {
		return int(v.Uint())
	}
	return -1
}
