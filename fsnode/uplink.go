package fsnode

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"unum/carry/file"
)

// uplink is the way to the homes of descriptions: the connection to the
// daemon, or what comes after it.
type uplink struct {
	ctx context.Context

	mu    sync.Mutex
	link  *file.Link
	ready chan struct{} // closed while there is a link
}

func newUplink(ctx context.Context) *uplink {
	return &uplink{ctx: ctx, ready: make(chan struct{})}
}

// set makes l the connection, instead of an older one.
func (u *uplink) set(l *file.Link) {
	u.mu.Lock()
	old := u.link
	if u.link == nil {
		close(u.ready)
	}
	u.link = l
	u.mu.Unlock()
	if old != nil {
		old.Close()
	}
}

// lost forgets l, if it is still the connection.
func (u *uplink) lost(l *file.Link) {
	u.mu.Lock()
	if u.link == l {
		u.link, u.ready = nil, make(chan struct{})
	}
	u.mu.Unlock()
}

// do sends op to the node home until it is answered, over as many daemons as
// it takes. interrupted ends it only as long as op was never sent.
func (u *uplink) do(home string, op *file.Op, interrupted <-chan struct{}) file.Result {
	head := make([]byte, 0, 160)
	head = append(head, byte(len(home)))
	head = append(head, home...)
	head = op.AppendHeader(head)
	for {
		u.mu.Lock()
		link, ready := u.link, u.ready
		u.mu.Unlock()
		if link == nil {
			select {
			case <-ready:
				continue
			case <-interrupted:
				return file.Result{Errno: unix.EINTR}
			case <-u.ctx.Done():
				return file.Result{Errno: unix.EIO}
			}
		}
		interrupted = nil
		b, err := link.Call(u.ctx, file.VerbOp, head, op.Data)
		switch {
		case errors.Is(err, file.ErrLinkDown):
			u.lost(link)
			continue
		case err != nil && u.ctx.Err() == nil && err.Error() == context.Canceled.Error():
			continue // the daemon was going down
		case err != nil:
			return file.Result{Errno: unix.EIO}
		}
		res, err := file.ParseResult(b)
		if err != nil {
			return file.Result{Errno: unix.EIO}
		}
		return res
	}
}
