package pipe

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"unum/carry"
)

// homeEnd is one description's share of a home half. A nil half was over before
// this daemon began.
type homeEnd struct{ h *half }

// Commit implements carry.Home.
func (e *homeEnd) Commit() {
	if e.h == nil {
		return
	}
	e.h.mu.Lock()
	first := !e.h.committed
	e.h.committed = true
	e.h.mu.Unlock()
	if first {
		e.h.eng.commit()
	}
}

// Drain implements carry.Home.
func (e *homeEnd) Drain(ctx context.Context) error {
	if e.h == nil {
		return nil
	}
	if s, ok := e.h.eng.(*sink); ok {
		return s.drained(ctx)
	}
	return nil
}

// Close implements carry.Home.
func (e *homeEnd) Close() error {
	if e.h == nil || !e.h.leave() {
		return nil
	}
	if !e.h.committed {
		e.h.discard()
		return nil
	}
	return e.h.drift()
}

// leave takes one description off the half and says if it was the last.
func (h *half) leave() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refs--
	if h.refs == 0 {
		close(h.left)
	}
	return h.refs == 0
}

// drift makes the half go on by itself until the body's children are done.
func (h *half) drift() error {
	if h.isReleased() {
		h.page.set(fAdrift)
		return nil
	}
	if h.side == home {
		if f := h.pipeEnd(); f != nil {
			if err := h.c.env.Keeper.Keep(h.ctx, h.pipeName(), f); err != nil {
				return err
			}
		}
		if h.isReleased() {
			return h.c.env.Keeper.Drop(h.ctx, h.pipeName())
		}
	}
	h.page.set(fAdrift)
	return nil
}

// pipeEnd is our end of the pipe, nil if released.
func (h *half) pipeEnd() *os.File {
	switch e := h.eng.(type) {
	case *source:
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.pipe()
	case *sink:
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.out
	}
	return nil
}

// guestEnd is one description's share of a guest half.
type guestEnd struct {
	h    *half
	body *os.File
}

// Local implements carry.Guest.
func (e *guestEnd) Local() carry.Local { return carry.Local{File: e.body} }

// Started implements carry.Guest.
func (e *guestEnd) Started(ok bool) {
	if e.h == nil || ok {
		return
	}
	e.h.mu.Lock()
	e.h.unborn = true
	e.h.mu.Unlock()
}

// Flush implements carry.Guest.
func (e *guestEnd) Flush(ctx context.Context, final bool) error {
	if e.h == nil {
		return nil
	}
	return e.h.eng.flush(ctx, final)
}

// Close implements carry.Guest.
func (e *guestEnd) Close() error {
	if e.h == nil || !e.h.leave() {
		return nil
	}
	e.h.mu.Lock()
	unborn := e.h.unborn
	e.h.mu.Unlock()
	if unborn {
		e.h.discard()
		return nil
	}
	return e.h.drift()
}

// heldInWorld says if a process of this node's world holds the pipe behind f.
func (c *Carrier) heldInWorld(f *os.File) bool {
	var st unix.Stat_t
	if err := fstat(f, &st); err != nil {
		return true
	}
	hs, err := holders(c.env, st.Ino)
	return err != nil || len(hs) > 0
}
