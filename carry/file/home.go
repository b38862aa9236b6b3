package file

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
)

// home holds the descriptions that this node serves to others.
type home struct {
	stateDir string
	keeper   carry.Keeper
	log      *slog.Logger

	mu    sync.Mutex
	files map[Key]*served
	left  map[Key]bool  // served by a predecessor, and not yet resumed
	added chan struct{} // closed and replaced when left has changed
}

// served is one carried description at home.
//
//	Serve → served ⇄ ops → released (the guest closed it last, or is lost)
type served struct {
	key   Key
	guest unum.NodeID
	home  *home
	log   *journal
	spool *spool // of a pipe

	ops      sync.WaitGroup // ops being executed
	released chan struct{}  // closed with the last descriptor
	gone     func()         // called once the guest has closed it, if not nil

	mu     sync.Mutex
	closed bool
	open   map[uint64]*description // by Fh; 0 is the carried one
	done   map[uint64]*outcome     // ops executed, until the guest says it has the answer
	cancel map[uint64]func()       // ops that wait
	early  map[uint64]bool         // cancelled before they came
	owners map[uint64]*os.File     // record locks, an open of the file for each lock owner
	before map[uint64]*journalSlot // ops that a predecessor had begun
}

// description is one open file description that ops are executed on.
type description struct {
	file   *os.File
	fd     int
	stream *stream // nil: a seekable file

	mu    sync.Mutex
	flags uint32 // O_APPEND and O_NONBLOCK as the guest had them last
}

type outcome struct {
	ready chan struct{}
	res   Result
}

// add begins to serve a description, or goes on where a predecessor was.
func (h *home) add(key Key, guest unum.NodeID, file *os.File, isStream, resume bool) (_ *served, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.files[key] != nil {
		return nil, fmt.Errorf("descriptor %d of placement %x: %w", key.Num, key.Placement, unum.ErrExists)
	}
	if !resume {
		os.Remove(journalPath(h.stateDir, key))
	}
	j, err := openJournal(h.stateDir, key)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			j.close(!resume)
		}
	}()
	j.setGuest(string(guest))
	s := &served{
		key: key, guest: guest, home: h, log: j, released: make(chan struct{}),
		open: map[uint64]*description{}, done: map[uint64]*outcome{}, cancel: map[uint64]func(){},
		early: map[uint64]bool{}, owners: map[uint64]*os.File{}, before: map[uint64]*journalSlot{},
	}
	if isStream {
		j.head.Stream = 1
		s.spool = &spool{key: key, log: j, keeper: h.keeper}
	}
	d, err := h.describe(s, file)
	if err != nil {
		return nil, err
	}
	s.open[0] = d
	if resume {
		if err := h.restore(s); err != nil {
			d.close()
			return nil, err
		}
	}
	h.files[key] = s
	if h.left[key] {
		delete(h.left, key)
		close(h.added)
		h.added = make(chan struct{})
	}
	return s, nil
}

func (h *home) describe(s *served, file *os.File) (*description, error) {
	d := &description{file: file, fd: int(file.Fd())}
	fl, err := unix.FcntlInt(file.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return nil, err
	}
	d.flags = uint32(fl) & sharedFlags
	if s.log.head.Stream != 0 {
		if d.stream, err = newStream(file, s.spool); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func (d *description) close() {
	if d.stream != nil {
		d.stream.close()
	}
	d.file.Close()
}

// release closes everything of s and forgets it; with keep, it is left to a
// successor of this daemon. It waits for ops that are being executed; those
// that wait for something are answered EINTR.
func (h *home) release(s *served, keep bool) {
	h.mu.Lock()
	if h.files[s.key] == s {
		delete(h.files, s.key)
	}
	h.mu.Unlock()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		<-s.released
		return
	}
	s.closed = true
	for _, c := range s.cancel {
		c()
	}
	for _, d := range s.open {
		if d.stream != nil {
			d.stream.close()
		}
	}
	s.mu.Unlock()
	s.ops.Wait()
	for _, d := range s.open {
		d.close()
	}
	for _, f := range s.owners {
		f.Close()
	}
	if s.spool != nil {
		s.spool.close()
	}
	if !keep {
		h.dropKept(s)
	}
	s.log.close(!keep)
	close(s.released)
	if !keep && s.gone != nil {
		s.gone()
	}
}

// await finds what is served under key. What a predecessor has served and
// this daemon does not yet is waited for. nil: nothing.
func (h *home) await(ctx context.Context, key Key) (*served, error) {
	for {
		h.mu.Lock()
		s, left, added := h.files[key], h.left[key], h.added
		h.mu.Unlock()
		if !left {
			return s, nil
		}
		select {
		case <-added:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// holds says whether the node serves descriptor fd of process pid to another
// node: its own duplicates are holders that no list of the world shows.
func (h *home) holds(pid, fd int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.files {
		s.mu.Lock()
		d := s.open[0]
		same := false
		if d != nil && !s.closed {
			same, _ = sameDescription(pid, os.Getpid(), fd, d.fd)
		}
		s.mu.Unlock()
		if same {
			return true
		}
	}
	return false
}

// handle answers the call carry.file.op.
func (h *home) handle(ctx context.Context, from unum.NodeID, req []byte) ([]byte, error) {
	op, err := ParseOp(req)
	if err != nil {
		return nil, &unum.Error{Op: "file op", Node: from, Err: err}
	}
	s, err := h.await(ctx, op.Key)
	if err != nil {
		return nil, err
	}
	if s == nil || s.guest != from {
		res := Result{Errno: unix.EIO}
		if op.Code == OpRelease {
			res.Errno = 0
		}
		return res.Encode(), nil
	}
	if op.Code == OpRelease && op.Fh == 0 {
		h.release(s, false)
		return (&Result{}).Encode(), nil
	}
	res := s.do(ctx, op)
	return res.Encode(), nil
}

// do executes an op, once for each Unique.
func (s *served) do(ctx context.Context, op *Op) Result {
	s.mu.Lock()
	for _, u := range op.Acked {
		delete(s.done, u)
		if !s.closed {
			s.log.forget(u)
		}
	}
	if s.closed {
		s.mu.Unlock()
		return Result{Errno: unix.EIO}
	}
	if op.Code == OpCancel {
		if c := s.cancel[op.Unique]; c != nil {
			c()
		} else if s.done[op.Unique] == nil {
			s.early[op.Unique] = true
		}
		s.mu.Unlock()
		return Result{}
	}
	if o := s.done[op.Unique]; o != nil && op.Unique != 0 {
		s.mu.Unlock()
		<-o.ready
		return o.res
	}
	// What waits is not ended by the end of one call: the answer must be kept
	// for the call that asks again. OpCancel and release end it.
	wait, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var o *outcome
	if op.Unique != 0 {
		o = &outcome{ready: make(chan struct{})}
		s.done[op.Unique] = o
		s.cancel[op.Unique] = stop
		if s.early[op.Unique] {
			delete(s.early, op.Unique)
			stop()
		}
	}
	d := s.open[op.Fh]
	slot := s.before[op.Unique]
	delete(s.before, op.Unique)
	s.ops.Add(1)
	s.mu.Unlock()
	defer s.ops.Done()

	res := Result{Errno: unix.EBADF}
	switch {
	case d == nil && op.Code != OpReopen && op.Code != OpUnlock:
	case slot != nil:
		res = s.again(wait, d, op, slot)
	default:
		res = s.execute(wait, d, op)
	}
	if o != nil {
		s.mu.Lock()
		delete(s.cancel, op.Unique)
		s.mu.Unlock()
		o.res = res
		close(o.ready)
	}
	return res
}

// homeHalf is carry.Home of a served description.
type homeHalf struct {
	k      *Kinds
	pl     carry.Placement
	nums   []int
	s      *served
	once   sync.Once
	closed chan struct{}
}

func newHomeHalf(k *Kinds, pl carry.Placement, nums []int, s *served) *homeHalf {
	h := &homeHalf{k: k, pl: pl, nums: nums, s: s, closed: make(chan struct{})}
	s.mu.Lock()
	s.gone = h.gone
	s.mu.Unlock()
	return h
}

// lingers is how long a description that the guest has closed may wait for
// the end of its body, which usually follows at once.
const lingers = 20 * time.Millisecond

// gone has the deputy close its copies, as the body has while it lives on:
// writers of a pipe get SIGPIPE then, and a lock is free.
func (h *homeHalf) gone() {
	if h.k.env.Release == nil {
		return
	}
	h.k.background(func(ctx context.Context) {
		select {
		case <-h.closed:
		case <-ctx.Done():
		case <-time.After(lingers):
			if err := h.k.env.Release(ctx, h.pl, h.nums); err != nil {
				h.k.log.Warn("a deputy keeps a descriptor that its body has closed", "pid", h.pl.Pid, "err", err)
			}
		}
	})
}

func (h *homeHalf) Commit() {}

// Drain has nothing to wait for: a write has returned at the guest only when
// it was done here.
func (h *homeHalf) Drain(context.Context) error { return nil }

// Close ends the half at once if the guest has closed the description. Else
// children of the body use it, and it is closed with them or with their node.
func (h *homeHalf) Close() error {
	h.once.Do(func() { close(h.closed) })
	select {
	case <-h.s.released:
		return nil
	default:
	}
	err := h.k.home.survive(h.k.ctx, h.s)
	h.k.outlive(h.s)
	return err
}

// outlive serves s until the guest has closed it.
func (k *Kinds) outlive(s *served) {
	k.background(func(ctx context.Context) {
		k.awaitGuest(ctx, s)
		if ctx.Err() == nil {
			k.home.release(s, false)
		}
	})
}
