package pipe

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"unum"
	"unum/carry"
)

// side says which half of a placement this is.
type side byte

const (
	home  side = 'h'
	guest side = 'g'
)

// key names one carried pipe of one placement on one node. All descriptions
// that a body has of one end of a pipe share a half, so that what goes through
// them stays in order.
type key struct {
	Side side
	Dir  byte // 'r': the body reads, 'w': it writes
	ID   uint64
	Dev  uint64
	Ino  uint64
}

func (k key) String() string {
	return fmt.Sprintf("pipe-%c-%c-%d-%d-%d", k.Side, k.Dir, k.ID, k.Dev, k.Ino)
}

// record is what a successor must know of a half.
type record struct {
	Key     key
	Pl      carry.Placement
	Size    int  // capacity of the pipe in bytes
	Records bool // pipe-write: the body's pipe is in packet mode
	Caller  int  // pipe-read: the deputy at home
}

// engine is source or sink. A link is attached once and detached once; a
// message comes from a link that is attached. release is called once, from a
// goroutine of its own.
type engine interface {
	attached(l *link)
	detached(l *link)
	message(l *link, msg []byte) error
	commit()
	flush(ctx context.Context, final bool) error
	release()
}

// half is one side of one carried pipe.
//
//	open → released → over
//
// Released: the pipe's end is closed here and nothing more will be done for it.
// Home is released first: when the body's side is gone and its last word acted
// on, or when nobody at home reads any more. It then tells the guest (over),
// which releases and answers (bye), and that is the end of both. The home half
// opens the channels and is the last to go, so that a lost bye is asked for
// again.
type half struct {
	c    *Carrier
	side side
	rec  record
	page *page
	eng  engine

	ctx      context.Context // of the half's life, for what has no caller
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	released chan struct{}
	left     chan struct{} // closed when the node has closed its last end
	once     sync.Once     // of end
	closed   atomic.Bool   // the body and its children have closed their end
	heard    atomic.Bool   // a message came since the last dial

	mu        sync.Mutex
	link      *link
	unlinked  time.Time // since when there is no link
	refs      int       // descriptions that share the half
	nums      []int     // their numbers in the deputy
	releasing bool
	committed bool
	failed    error
	unborn    bool // guest: the body never ran
}

// link is one channel in its time.
type link struct {
	ch  unum.Channel
	ctx context.Context
}

func (l *link) send(msg []byte) error { return l.ch.Send(l.ctx, msg) }

func (h *half) pageName() string    { return filepath.Join(h.c.env.StateDir, h.rec.Key.String()) }
func (h *half) scratchName() string { return h.rec.Key.String() + ".scratch" }
func (h *half) pipeName() string    { return h.rec.Key.String() + ".pipe" }
func (h *half) heldName() string    { return h.rec.Key.String() + ".held" }
func (h *half) endName() string     { return h.rec.Key.String() + ".end" }

// spawn runs fn as a goroutine of the half.
func (h *half) spawn(fn func()) {
	h.wg.Add(1)
	h.c.spent.Add(1)
	go func() {
		defer h.c.spent.Done()
		defer h.wg.Done()
		fn()
	}()
}

// fail ends a half that cannot go on: the body sees the end of the pipe. It is
// a bug or a pipe that somebody else has taken from.
func (h *half) fail(err error) {
	if h.ctx.Err() != nil {
		return
	}
	h.mu.Lock()
	first := h.failed == nil && !h.releasing
	if first {
		h.failed = err
	}
	h.mu.Unlock()
	if first {
		h.c.log.Error("carried pipe failed", "pid", h.rec.Pl.Pid, "op", h.rec.Pl.ID, "pipe", h.rec.Key.String(), "err", err)
		h.release()
	}
}

// release closes the pipe's end, once, in the background: the caller may be in
// the midst of using it.
func (h *half) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.releasing {
		return
	}
	h.releasing = true
	h.spawn(func() {
		h.page.set(fReleased)
		h.eng.release()
		h.drop(h.ctx)
		close(h.released)
		if h.side != home {
			return
		}
		if l := h.current(); l != nil {
			l.send([]byte{mOver})
		}
		h.letGo()
	})
}

// letGoAfter is how long a half waits before it has the deputy close its
// descriptors. Mostly the deputy is about to end and closes them anyway.
const letGoAfter = 5 * time.Millisecond

// letGo makes the deputy close what the body and its children have closed: its
// copy is the last that keeps a reader at home from the end of the file, and a
// writer from the broken pipe.
func (h *half) letGo() {
	h.mu.Lock()
	left := h.left
	h.mu.Unlock()
	select {
	case <-time.After(letGoAfter):
	case <-left:
		return
	case <-h.c.ctx.Done():
		return
	}
	h.mu.Lock()
	nums := slices.Clone(h.nums)
	ok := h.committed && h.closed.Load()
	h.mu.Unlock()
	if ok {
		h.c.letGo(h.rec.Pl, nums)
	}
}

func (c *Carrier) letGo(pl carry.Placement, nums []int) {
	if c.env.Release == nil || len(nums) == 0 {
		return
	}
	if err := c.env.Release(c.ctx, pl, nums); err != nil && c.ctx.Err() == nil {
		c.log.Warn("the deputy keeps a pipe open", "pid", pl.Pid, "op", pl.ID, "err", err)
	}
}

// drop takes all that is kept for the half from the keeper.
func (h *half) drop(ctx context.Context) {
	for _, name := range []string{h.scratchName(), h.pipeName(), h.heldName(), h.endName()} {
		if err := h.c.env.Keeper.Drop(ctx, name); err != nil && ctx.Err() == nil {
			h.c.log.Warn("drop a kept pipe", "op", h.rec.Pl.ID, "err", err)
		}
	}
}

func (h *half) current() *link {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.link
}

func (h *half) isReleased() bool {
	select {
	case <-h.released:
		return true
	default:
		return false
	}
}

// hello opens a channel of Service.
type hello struct{ Key key }

const (
	firstBackoff = time.Millisecond
	lastBackoff  = 200 * time.Millisecond
)

// dial is the home half's goroutine: it keeps a channel to the guest until the
// guest says bye.
func (h *half) dial() {
	k := h.rec.Key
	k.Side = guest
	msg, err := msgpack.Marshal(hello{k})
	if err != nil {
		h.fail(err)
		return
	}
	backoff := firstBackoff
	for h.ctx.Err() == nil {
		err := h.dialOnce(msg)
		switch {
		case err == errBye:
			h.end()
			return
		case errors.Is(err, unum.ErrNodeLost), errors.Is(err, unum.ErrNoNode):
			h.release()
			<-h.released
			h.end()
			return
		}
		if h.heard.Swap(false) {
			backoff = firstBackoff
		}
		select {
		case <-h.ctx.Done():
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, lastBackoff)
	}
}

var errBye = errors.New("bye")

func (h *half) dialOnce(hello []byte) error {
	peer, err := h.c.env.Peer(h.rec.Pl.Guest)
	if err != nil {
		return err
	}
	ch, err := peer.Open(h.ctx, Service, hello)
	if err != nil {
		return err
	}
	return h.serve(h.ctx, ch)
}

// serve runs one channel to its end.
func (h *half) serve(ctx context.Context, ch unum.Channel) error {
	defer ch.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(h.ctx, cancel)()
	l := &link{ch: ch, ctx: ctx}
	h.mu.Lock()
	old := h.link
	h.link = l
	h.mu.Unlock()
	if old != nil {
		old.ch.Close()
		h.eng.detached(old)
	}
	defer func() {
		h.mu.Lock()
		if h.link == l {
			h.link = nil
			h.unlinked = time.Now()
		}
		h.mu.Unlock()
		h.eng.detached(l)
	}()
	if h.side == home && h.isReleased() {
		l.send([]byte{mOver})
	} else {
		h.eng.attached(l)
	}
	for {
		msg, err := ch.Recv(ctx)
		if err != nil {
			return err
		}
		if len(msg) == 0 {
			return errBadMessage
		}
		h.heard.Store(true)
		switch {
		case msg[0] == mBye && h.side == home:
			h.release()
			<-h.released
			return errBye
		case msg[0] == mOver && h.side == guest:
			h.release()
			<-h.released
			l.send([]byte{mBye})
			return errBye
		}
		if err := h.eng.message(l, msg); err != nil {
			if errors.Is(err, errBadMessage) {
				h.c.log.Warn("carried pipe: dropping the channel", "op", h.rec.Pl.ID, "err", err)
				return err
			}
			h.fail(err)
		}
	}
}

// end forgets the half, once.
func (h *half) end() {
	h.once.Do(func() {
		h.page.remove()
		h.c.forget(h)
		h.cancel()
	})
}

// discard ends a half whose body never ran, without a word to the other side,
// which does the same.
func (h *half) discard() {
	h.release()
	<-h.released
	h.end()
}
