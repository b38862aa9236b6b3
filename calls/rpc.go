package calls

import (
	"context"
	"errors"

	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"unum"
)

// call makes a typed call to another node.
func call[R any](ctx context.Context, p unum.Peer, method string, req any) (*R, error) {
	b, err := msgpack.Marshal(req)
	if err != nil {
		return nil, err
	}
	if b, err = p.Call(ctx, method, b); err != nil {
		return nil, err
	}
	res := new(R)
	return res, msgpack.Unmarshal(b, res)
}

// handle makes a unum.Handler of a typed function.
func handle[Q, R any](f func(ctx context.Context, q *Q) (*R, error)) unum.Handler {
	return func(ctx context.Context, _ unum.NodeID, b []byte) ([]byte, error) {
		req := new(Q)
		if err := msgpack.Unmarshal(b, req); err != nil {
			return nil, err
		}
		res, err := f(ctx, req)
		if err != nil {
			return nil, err
		}
		return msgpack.Marshal(res)
	}
}

// errno is what a caller sees of an error. A node that is lost has no
// processes any more.
func errno(err error) unix.Errno {
	var no unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &no):
		return no
	case errors.Is(err, unum.ErrDenied):
		return unix.EPERM
	}
	return unix.ESRCH
}
