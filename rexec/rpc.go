package rexec

import (
	"context"

	"github.com/vmihailenco/msgpack/v5"

	"unum"
)

// call makes a typed call to another node. Strings are bytes in msgpack, so
// arguments of programs arrive as they are.
func call[R any](ctx context.Context, p unum.Peer, method string, req any) (*R, error) {
	b, err := msgpack.Marshal(req)
	if err != nil {
		return nil, err
	}
	b, err = p.Call(ctx, method, b)
	if err != nil {
		return nil, err
	}
	res := new(R)
	if err := msgpack.Unmarshal(b, res); err != nil {
		return nil, err
	}
	return res, nil
}

// handle makes a unum.Handler of a typed function.
func handle[Q, R any](f func(ctx context.Context, from unum.NodeID, req *Q) (*R, error)) unum.Handler {
	return func(ctx context.Context, from unum.NodeID, b []byte) ([]byte, error) {
		req := new(Q)
		if err := msgpack.Unmarshal(b, req); err != nil {
			return nil, err
		}
		res, err := f(ctx, from, req)
		if err != nil {
			return nil, err
		}
		return msgpack.Marshal(res)
	}
}
