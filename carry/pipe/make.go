package pipe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"unum/sys"
)

// newHalf makes a half that is not on the books yet.
func (c *Carrier) newHalf(rec record, p *page) *half {
	h := &half{c: c, side: rec.Key.Side, rec: rec, page: p, refs: 1,
		released: make(chan struct{}), left: make(chan struct{}), unlinked: time.Now()}
	h.ctx, h.cancel = context.WithCancel(c.ctx)
	return h
}

// create makes the page.
func (h *half) create() error {
	b, err := msgpack.Marshal(h.rec)
	if err != nil {
		return err
	}
	h.page, err = newPage(h.pageName(), b)
	return err
}

// abandon undoes a half that was not started.
func (h *half) abandon() {
	h.cancel()
	if h.eng != nil {
		h.eng.release()
	}
	if h.page != nil {
		h.drop(context.Background())
		h.page.remove()
	}
}

// start puts the half on the books and starts its goroutines.
func (h *half) start() error {
	h.c.mu.Lock()
	if h.c.closed {
		h.c.mu.Unlock()
		return os.ErrClosed
	}
	h.c.halves[h.rec.Key] = h
	h.c.mu.Unlock()
	if h.isReleased() {
		// nothing to pump
	} else if s, ok := h.eng.(*source); ok {
		in := s.pipe()
		h.spawn(func() { s.pump(in) })
	} else {
		s := h.eng.(*sink)
		out := s.out
		if f := cmp.Or(s.out, s.in); f != nil && !s.onWrite {
			s.mu.Lock()
			s.watch = h.c.watcher.add(f, s)
			s.mu.Unlock()
		}
		if out != nil {
			h.spawn(func() { s.pump(out) })
		}
	}
	if h.side == home {
		h.spawn(h.dial)
	} else {
		h.c.landed.broadcast()
	}
	return nil
}

// openHome makes the engine at home, over a private description of the user's
// pipe: O_NONBLOCK on it concerns nobody else.
func (h *half) openHome(file *os.File) error {
	flags := unix.O_RDONLY
	if h.rec.Key.Dir == 'w' {
		flags = unix.O_WRONLY
	}
	f, err := sys.ReopenPipe(file, flags|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	h.setEngine(f)
	return nil
}

// setEngine makes the engine for the half's end f of the pipe.
func (h *half) setEngine(f *os.File) {
	if (h.side == home) == (h.rec.Key.Dir == 'r') {
		h.eng = &source{h: h, in: f, packet: h.rec.Records}
		return
	}
	s := &sink{h: h, out: f, records: h.rec.Records, onWrite: h.rec.Records, watch: -1, armed: -1}
	h.eng = s
}

// packetSize is the capacity of a body's pipe in packet mode, where every
// write, however small, takes a page.
const packetSize = 1 << 20

// makeBody makes the body's pipe, keeps our end, and returns the body's.
func (h *half) makeBody(ctx context.Context, dd *desc, flags int) (body *os.File, err error) {
	size := dd.Size
	nonblock := flags & unix.O_NONBLOCK
	var ours *os.File
	if h.rec.Key.Dir == 'r' {
		body, ours, err = sys.NewPipe(size, nonblock, unix.O_NONBLOCK)
	} else {
		if dd.Records {
			size, nonblock = max(size, packetSize), nonblock|unix.O_DIRECT
		}
		ours, body, err = sys.NewPipe(size, unix.O_NONBLOCK, nonblock)
	}
	if err != nil {
		return nil, err
	}
	h.setEngine(ours)
	// A pipe is opened again through /proc/self/fd, or /dev/stdin, by its owner.
	if err := control(ours, func(fd int) error { return unix.Fchown(fd, int(dd.Uid), int(dd.Gid)) }); err != nil {
		body.Close()
		return nil, err
	}
	if s, ok := h.eng.(*sink); ok && len(dd.Prefill) > 0 {
		if n, err := sys.WriteNow(ours, dd.Prefill); err != nil || n != len(dd.Prefill) {
			body.Close()
			return nil, fmt.Errorf("prefill: %d of %d bytes: %v", n, len(dd.Prefill), err)
		}
		s.wrote = uint64(len(dd.Prefill))
		s.next, s.tail = s.wrote, len(dd.Prefill)%atomicWrite
		h.page.setCount(s.wrote, idle)
	}
	if s, ok := h.eng.(*sink); ok && dd.Ended {
		s.ended = true
		err = s.passEnd()
		h.wg.Wait() // for it to be closed: poll says POLLHUP from the first moment
	} else {
		err = h.c.env.Keeper.Keep(ctx, h.pipeName(), ours)
	}
	if err != nil {
		body.Close()
		return nil, err
	}
	return body, nil
}

// another opens the body's end of the pipe once more.
func (h *half) another(flags int) (*os.File, error) {
	var f *os.File
	mode := unix.O_RDONLY
	switch e := h.eng.(type) {
	case *source:
		mode = unix.O_WRONLY
		if e.packet {
			mode |= unix.O_DIRECT
		}
		f = e.in
	case *sink:
		f = e.out
	}
	if f == nil {
		return nil, os.ErrClosed
	}
	return sys.ReopenPipe(f, mode|flags&unix.O_NONBLOCK)
}

// resume makes the engine of a half whose page is there. file is the user's
// pipe, at home.
func (h *half) resume(file *os.File) error {
	if h.page.has(fReleased) {
		h.drop(h.ctx)
		if h.side == guest { // home has said over, and may be gone
			h.end()
			return fs.ErrNotExist
		}
		h.eng = &source{h: h}
		h.releasing, h.committed = true, true
		close(h.released)
		return h.start()
	}
	if h.side == home {
		if file == nil {
			return fs.ErrNotExist
		}
		if err := h.openHome(file); err != nil {
			return err
		}
		h.holdBack()
	} else if err := h.takeBody(); err != nil {
		return err
	}
	var err error
	switch e := h.eng.(type) {
	case *source:
		if h.page.has(fContested) {
			err = e.resumeContested()
		}
		if err == nil {
			err = e.resume()
		}
	case *sink:
		err = e.resume()
	}
	if err != nil {
		return err
	}
	return h.start()
}

// holdBack makes home wait for Commit, unless the placement was committed and is
// over: then nobody will say it again.
func (h *half) holdBack() {
	if h.committed = h.page.has(fAdrift); h.committed {
		return
	}
	switch e := h.eng.(type) {
	case *source:
		e.hold = true
	case *sink:
		e.hold = true
	}
}

// takeBody takes our end of the body's pipe from the keeper.
func (h *half) takeBody() error {
	ended := h.page.has(fEnded)
	name := h.pipeName()
	if ended {
		name = h.endName()
		if err := h.c.env.Keeper.Drop(h.ctx, h.pipeName()); err != nil {
			return err
		}
	}
	f, err := h.c.env.Keeper.Take(name)
	if errors.Is(err, fs.ErrNotExist) && ended {
		// The pipe was empty when its end was passed on.
		h.setEngine(nil)
		h.eng.(*sink).gone = true
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	mode := unix.O_RDONLY
	if h.rec.Key.Dir == 'r' && !ended {
		mode = unix.O_WRONLY
	}
	if f, err = sys.ReopenPipe(f, mode|unix.O_NONBLOCK); err != nil {
		return err
	}
	h.setEngine(f)
	if s, ok := h.eng.(*sink); ok && ended {
		s.out, s.in, s.ended = nil, f, true
		h.c.idle(f, 1)
	}
	return nil
}

// stop ends the half's work in this daemon and leaves it to a successor.
func (h *half) stop() {
	h.cancel()
	h.eng.release()
	h.wg.Wait()
	h.page.close()
}
