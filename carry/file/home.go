package file

import (
	"context"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
)

// home holds the descriptions that this node serves to others.
type home struct {
	mu    sync.Mutex
	files map[Key]*served
}

// served is one carried description at home.
//
//	Serve → served ⇄ ops → released (the guest closed it last, or is lost)
type served struct {
	key   Key
	guest unum.NodeID

	ops      sync.WaitGroup // ops being executed
	released chan struct{}  // closed with the last descriptor

	mu     sync.Mutex
	closed bool
	open   map[uint64]*description // by Fh; 0 is the carried one
	done   map[uint64]*outcome     // ops executed, until the guest says it has the answer
	cancel map[uint64]func()       // ops that wait
	early  map[uint64]bool         // cancelled before they came
	owners map[uint64]*os.File     // record locks, an open of the file for each lock owner
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

func (h *home) add(key Key, guest unum.NodeID, file *os.File, isStream bool) (*served, error) {
	d, err := describe(file, isStream)
	if err != nil {
		return nil, err
	}
	s := &served{
		key: key, guest: guest, released: make(chan struct{}),
		open: map[uint64]*description{0: d}, done: map[uint64]*outcome{},
		cancel: map[uint64]func(){}, early: map[uint64]bool{}, owners: map[uint64]*os.File{},
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.files[key] != nil {
		d.close()
		return nil, fmt.Errorf("descriptor %d of placement %x: %w", key.Num, key.Placement, unum.ErrExists)
	}
	h.files[key] = s
	return s, nil
}

func describe(file *os.File, isStream bool) (*description, error) {
	d := &description{file: file, fd: int(file.Fd())}
	fl, err := unix.FcntlInt(file.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return nil, err
	}
	d.flags = uint32(fl) & sharedFlags
	if isStream {
		st, err := newStream(file)
		if err != nil {
			return nil, err
		}
		d.stream = st
	}
	return d, nil
}

func (d *description) close() {
	if d.stream != nil {
		d.stream.close()
	}
	d.file.Close()
}

// release closes everything of s and forgets it. It waits for ops that are
// being executed; those that wait for something are answered EINTR.
func (h *home) release(s *served) {
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
	close(s.released)
}

func (h *home) find(key Key) *served {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.files[key]
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
	s := h.find(op.Key)
	if s == nil || s.guest != from {
		res := Result{Errno: unix.EIO}
		if op.Code == OpRelease {
			res.Errno = 0
		}
		return res.Encode(), nil
	}
	if op.Code == OpRelease && op.Fh == 0 {
		h.release(s)
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
	s.ops.Add(1)
	s.mu.Unlock()
	defer s.ops.Done()

	res := Result{Errno: unix.EBADF}
	if d != nil || op.Code == OpReopen || op.Code == OpUnlock {
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
	k  *Kinds
	pl carry.Placement
	s  *served
}

func (h *homeHalf) Commit() {}

// Drain has nothing to wait for: a write has returned at the guest only when
// it was done here.
func (h *homeHalf) Drain(context.Context) error { return nil }

// Close ends the half at once if the guest has closed the description. Else
// children of the body use it, and it is closed with them or with their node.
func (h *homeHalf) Close() error {
	select {
	case <-h.s.released:
		return nil
	default:
	}
	h.k.background(func(ctx context.Context) {
		h.k.awaitGuest(ctx, h.s)
		h.k.home.release(h.s)
	})
	return nil
}
