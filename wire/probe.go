package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"syscall"

	"unum"
)

// hostAnswered says whether an error of a connection came from the peer's
// side, so that at least its kernel lives: an end of input, a reset, a refusal.
// Time-outs, unreachable networks and what this side did are no answers.
func hostAnswered(err error) bool {
	var refused refusedError
	var record tls.RecordHeaderError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) ||
		errors.As(err, &refused) || errors.As(err, &record) || alertOf(err) >= 0
}

// Probe says whether the host of a node answers on its port, before ctx ends.
// The kernel answers even while the daemon hangs.
func (e *Endpoint) Probe(ctx context.Context, id unum.NodeID) bool {
	addr, ok := e.cfg.Lookup(id)
	if !ok {
		return false
	}
	c, err := e.cfg.Dial(ctx, "tcp", addr)
	if err != nil {
		return hostAnswered(err)
	}
	c.Close()
	return true
}
