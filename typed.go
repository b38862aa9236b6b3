package unum

import (
	"context"

	"github.com/vmihailenco/msgpack/v5"
)

// Call makes a typed call to another node. Strings are bytes in msgpack, so
// arguments of programs arrive as they are.
func Call[R any](ctx context.Context, p Peer, method string, req any) (*R, error) {
	b, err := msgpack.Marshal(req)
	if err != nil {
		return nil, err
	}
	if b, err = p.Call(ctx, method, b); err != nil {
		return nil, err
	}
	res := new(R)
	if err := msgpack.Unmarshal(b, res); err != nil {
		return nil, err
	}
	return res, nil
}

// Handle makes a Handler of a typed function.
func Handle[Q, R any](f func(ctx context.Context, from NodeID, req *Q) (*R, error)) Handler {
	return func(ctx context.Context, from NodeID, b []byte) ([]byte, error) {
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
