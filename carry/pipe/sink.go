package pipe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"unum/sys"
)

// sink is the half whose pipe is written: the body's at the guest for
// pipe-read, the user's at home for pipe-write. It tells the source what it
// wrote and what the reader of its pipe has taken.
//
// A daemon that dies between a write and the note that it was made must not
// leave a doubt. Whole pages are written to a kept scratch pipe, then
// (wrote+n, moving) is stored, then they are spliced to the pipe, then (wrote+n,
// idle) is stored: in phase idle what the scratch holds is void; in phase moving
// it is what is still to be spliced. A piece of less than a page is written
// itself, so that it joins the piece before it as the user's own write would
// have; see writeDirect.
//
// Lock order: mu, then nothing.
type sink struct {
	h       *half
	records bool // one write each; the pipe has other writers
	onWrite bool // free is wrote: what readers have taken cannot be known

	mu        sync.Mutex
	out       *os.File // the write end; nil when released or passed on
	in        *os.File // guest, after the end: a read end, to see what is left
	kept      *scratch // nil until needed
	link      *link
	hold      bool     // before Commit: write nothing
	pending   []byte   // received, not yet in kept or out
	recs      [][]byte // the same for records
	kleft     int      // in kept, phase moving
	tail      int      // bytes in the page that the last direct write went to
	wrote     uint64
	next      uint64 // what the source sends next
	ended     bool   // next is the end
	told      uint64 // free of the last ack
	syncAt    uint64 // ack at once when wrote reaches this; 0: not asked
	asked     uint64 // confirms asked for
	confirmed uint64
	gone      bool // no reader will ever come
	closed    bool // gone, because they closed their end
	saidGone  bool // on this link
	final     bool // the body is over
	released  bool
	timer     *time.Timer
	pause     time.Duration // of the timer
	watch     int           // wd in the carrier's watcher; <0: none
	armed     int           // wd in the carrier's witness; <0: none
	changed   signal

	// See contest.go.
	withdrawals uint64
	deaf        uint64 // throw away what comes until this is confirmed
	contested   bool
	wanting     bool // a want is on its way
}

// How the reader's progress is seen: an edge of the poller if the pipe was
// full, IN_ACCESS from the watcher, and a timer in case of neither.
const (
	firstPause = time.Millisecond
	lastPause  = 64 * time.Millisecond
)

// resume brings the counts in order; see sink. The caller owns s alone.
func (s *sink) resume() error {
	n, phase := s.h.page.count()
	k, err := takeScratch(s.h.c.env.Keeper, s.h.scratchName())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	s.kept = k
	if s.out != nil {
		if s.armed, err = s.h.c.witness.armed(s.out); err != nil {
			return err
		}
	}
	switch {
	case phase == moving && k != nil:
		if s.kleft = k.left(); s.kleft == 0 {
			s.h.page.setCount(n, idle)
		}
	case phase == taking && k != nil:
		n -= min(n, uint64(k.left()))
		if err := k.drop(s.h.c.null, k.left()); err != nil {
			return err
		}
		s.h.page.setCount(n, idle)
	case phase == direct:
		if s.armed < 0 {
			n += s.h.page.load(wDirect)
		}
		fallthrough
	default:
		if k != nil {
			if err := k.drop(s.h.c.null, k.left()); err != nil {
				return err
			}
		}
		s.h.page.setCount(n, idle)
	}
	s.wrote, s.next = n-uint64(s.kleft), n
	return nil
}

// pump moves on whenever the pipe gets room or loses its last reader. Its
// goroutine ends when out is closed.
func (s *sink) pump(out *os.File) {
	rc, err := out.SyscallConn()
	if err != nil {
		return
	}
	rc.Write(func(uintptr) bool {
		s.progress(false)
		return false
	})
}

// progress writes what can be written and tells the source what it should
// know; with force it tells in any case.
func (s *sink) progress(force bool) {
	s.mu.Lock()
	msg, l, err := s.advance(force)
	s.mu.Unlock()
	if msg != nil {
		l.send(msg)
	}
	if err != nil {
		s.h.fail(err)
	}
}

// advance is progress under mu; the message is for l.
func (s *sink) advance(force bool) (msg []byte, l *link, err error) {
	if s.released {
		return nil, nil, nil
	}
	if !s.hold {
		if err := s.drain(); err != nil {
			return nil, nil, err
		}
	}
	if err := s.look(); err != nil {
		return nil, nil, err
	}
	free, err := s.free()
	if err != nil {
		return nil, nil, err
	}
	s.changed.broadcast()
	s.again(free)
	if s.h.side == home && (s.gone || s.ended && s.empty()) {
		if !s.gone {
			s.h.closed.Store(true)
		}
		s.h.release()
	}
	if s.syncAt != 0 && s.wrote >= s.syncAt {
		s.syncAt, force = 0, true
	}
	if s.link == nil || !force && s.gone == s.saidGone && free-s.told < atomicWrite {
		return nil, nil, nil
	}
	a := ack{wrote: s.wrote, free: free, gone: s.gone, closed: s.closed, recalled: s.withdrawals}
	if s.asked > s.confirmed {
		a.confirm = s.asked
	}
	s.told, s.saidGone = free, s.gone
	return a.encode(), s.link, nil
}

// empty says that all that was received is in the pipe.
func (s *sink) empty() bool { return len(s.pending) == 0 && len(s.recs) == 0 && s.kleft == 0 }

// free returns up to where readers have taken. What others wrote into the same
// pipe counts as ours and unread, which errs to the safe side: when the pipe is
// empty it is right again.
func (s *sink) free() (uint64, error) {
	if s.onWrite {
		return s.wrote, nil
	}
	f := s.out
	if f == nil {
		f = s.in
	}
	if f == nil {
		return s.wrote, nil
	}
	n, err := sys.PipeUnread(f)
	return s.wrote - min(s.wrote, uint64(n)), err
}

// look notices that the readers are gone, and passes on the end.
func (s *sink) look() error {
	if s.gone {
		return nil
	}
	if s.out != nil {
		ev, err := sys.Poll(s.out, unix.POLLOUT)
		if err != nil {
			return err
		}
		if ev&unix.POLLERR != 0 {
			s.lose()
			return nil
		}
	}
	if s.h.side == home || !s.ended || !s.empty() {
		return nil
	}
	if s.out != nil {
		return s.passEnd()
	}
	// Nobody writes any more and the read end is ours too, so that only the
	// state of the body's world can tell whether somebody will read the rest.
	n, err := sys.PipeUnread(s.in)
	if err != nil {
		return err
	}
	if n == 0 || s.final && !s.h.c.heldInWorld(s.in) {
		s.gone = true
	}
	return nil
}

// lose notes that nobody will ever read more.
func (s *sink) lose() {
	s.gone, s.closed = true, true
	s.pending, s.recs, s.kleft = nil, nil, 0
}

// drain writes until all is written or the pipe is full.
func (s *sink) drain() error {
	for !s.gone && s.out != nil {
		n, err := s.step()
		switch {
		case err == unix.EAGAIN:
			return nil
		case err == unix.EPIPE:
			s.lose()
			return nil
		case err != nil:
			return err
		case n == 0:
			return nil
		}
	}
	return nil
}

// step makes one write. It returns 0, nil when nothing is left to do.
func (s *sink) step() (int, error) {
	if s.kleft > 0 {
		n, err := sys.Splice(s.kept.r, s.out, s.kleft)
		if err != nil {
			return 0, err
		}
		s.kleft -= n
		s.wrote += uint64(n)
		s.tail = 0
		if s.kleft == 0 {
			s.h.page.setCount(s.wrote, idle)
		}
		return n, nil
	}
	if len(s.recs) > 0 {
		return s.fill(s.batch())
	}
	if len(s.pending) == 0 {
		s.pending = nil
		return 0, nil
	}
	if n, err := s.room(); err != nil {
		return 0, err
	} else if n = min(n, len(s.pending)); n > 0 {
		n, err := s.writeDirect(s.pending[:n])
		s.pending = s.pending[n:]
		return n, err
	}
	n := len(s.pending)
	if s.h.c.witness != nil {
		n -= n % atomicWrite
	}
	n, err := s.fill(s.pending[:n])
	s.pending = s.pending[n:]
	return n, err
}

// room returns how much to write by itself now, so that the pipe's pages are
// filled as well as the user's own writes would fill them: what fits into the
// page of the last piece, or the beginning of a page.
func (s *sink) room() (int, error) {
	if s.h.c.witness == nil {
		return 0, nil
	}
	if s.tail%atomicWrite != 0 {
		held, err := sys.PipeUnread(s.out)
		if err != nil {
			return 0, err
		}
		if held > 0 {
			return atomicWrite - s.tail, nil
		}
	}
	s.tail = 0
	if len(s.pending) < atomicWrite {
		return len(s.pending), nil
	}
	return 0, nil
}

// batch takes records off recs that fit one page together: one buffer of the
// pipe, which is spliced whole or not at all.
func (s *sink) batch() []byte {
	b := s.recs[0]
	s.recs = s.recs[1:]
	if len(s.recs) == 0 || len(b)+len(s.recs[0]) > atomicWrite {
		return b
	}
	b = append(make([]byte, 0, atomicWrite), b...)
	for len(s.recs) > 0 && len(b)+len(s.recs[0]) <= atomicWrite {
		b = append(b, s.recs[0]...)
		s.recs = s.recs[1:]
	}
	return b
}

// fill puts bytes into the kept scratch, from where the next step splices.
func (s *sink) fill(p []byte) (int, error) {
	if s.kept == nil {
		k, err := keptScratch(s.h.ctx, s.h.c.env.Keeper, s.h.scratchName(), 1<<16)
		if err != nil {
			return 0, err
		}
		s.kept = k
	}
	n, err := sys.WriteNow(s.kept.w, p[:min(len(p), s.kept.size)])
	if err != nil {
		return 0, fmt.Errorf("fill the scratch pipe: %w", err)
	}
	s.kleft = n
	s.h.page.setCount(s.wrote+uint64(n), moving)
	return n, nil
}

// writeDirect writes less than a page, which the kernel writes whole or not at
// all, joined to the last buffer where it fits (pipe_write in fs/pipe.c).
// Whether it was written is witnessed by a watch that fires once: the kernel
// removes it within the same system call. inotify(7), IN_ONESHOT.
func (s *sink) writeDirect(p []byte) (int, error) {
	var err error
	if s.armed, err = s.h.c.witness.arm(s.out); err != nil {
		return 0, err
	}
	s.h.page.store(wDirect, uint64(len(p)))
	s.h.page.setCount(s.wrote, direct)
	n, err := sys.WriteNow(s.out, p)
	s.wrote += uint64(n)
	s.tail += n
	s.h.page.setCount(s.wrote, idle)
	if err == nil {
		s.armed = -1
	}
	return n, err
}

// passEnd gives the body its end of file: our write end is replaced by a read
// end, which sees what is left and keeps nobody waiting.
func (s *sink) passEnd() error {
	n, err := sys.PipeUnread(s.out)
	if err != nil {
		return err
	}
	k := s.h.c.env.Keeper
	if n > 0 {
		if s.in, err = sys.ReopenPipe(s.out, unix.O_RDONLY|unix.O_NONBLOCK); err != nil {
			return err
		}
		if err := k.Keep(s.h.ctx, s.h.endName(), s.in); err != nil {
			return err
		}
	}
	s.h.page.set(fEnded)
	if err := k.Drop(s.h.ctx, s.h.pipeName()); err != nil {
		return err
	}
	out := s.out
	s.out = nil
	s.h.spawn(func() { out.Close() }) // waits for the pump, which may be our caller
	if s.in == nil {
		s.gone = true
	}
	return nil
}

// again sets the timer for the next look, if the reader has something to take.
func (s *sink) again(free uint64) {
	switch {
	case s.gone || s.told >= s.wrote:
		return
	case free > s.told || s.pause == 0:
		s.pause = firstPause
	default:
		s.pause = min(2*s.pause, lastPause)
	}
	if s.timer == nil {
		s.timer = time.AfterFunc(s.pause, s.tick)
	} else {
		s.timer.Reset(s.pause)
	}
}

// tick tells of any progress, however small.
func (s *sink) tick() {
	s.mu.Lock()
	free, err := s.free()
	told := s.told
	s.mu.Unlock()
	s.progress(err == nil && free > told)
}

func (s *sink) attached(l *link) {
	s.mu.Lock()
	if s.released {
		s.mu.Unlock()
		return
	}
	s.link, s.saidGone = l, false
	s.next = s.wrote + uint64(s.kleft) // what was only in memory is sent again
	s.pending, s.recs, s.ended = nil, nil, s.h.page.has(fEnded)
	s.deaf, s.wanting = 0, false
	s.mu.Unlock()
	s.progress(true)
}

func (s *sink) detached(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link == l {
		s.link = nil
	}
}

func (s *sink) message(l *link, msg []byte) error {
	s.mu.Lock()
	if s.link != l {
		s.mu.Unlock()
		return nil
	}
	err := s.take(msg)
	var out []byte
	if err == nil {
		out, _, err = s.advance(msg[0] == mRecall)
	}
	s.mu.Unlock()
	if out != nil {
		l.send(out)
	}
	return err
}

// take takes in one message.
func (s *sink) take(msg []byte) error {
	if s.deaf > s.confirmed && (msg[0] == mData || msg[0] == mEnd) {
		return nil
	}
	switch msg[0] {
	case mData:
		off, p, err := split(msg)
		if err != nil || off > s.next || s.ended {
			return errors.Join(errBadMessage, err)
		}
		s.wanting = false
		if end := off + uint64(len(p)); end > s.next {
			if p = p[s.next-off:]; len(s.pending) == 0 {
				s.pending = p
			} else {
				s.pending = append(s.pending, p...)
			}
			s.next = end
		}
	case mRecords:
		off, p, err := split(msg)
		if err != nil || off > s.next || s.ended || !s.records {
			return errors.Join(errBadMessage, err)
		}
		recs, err := records(p)
		if err != nil {
			return err
		}
		for _, r := range recs {
			if off >= s.next {
				s.recs = append(s.recs, r)
			}
			off += uint64(len(r))
		}
		s.next = max(s.next, off)
	case mEnd:
		off, _, err := split(msg)
		if err != nil || off != s.next {
			return errors.Join(errBadMessage, err)
		}
		s.ended = true
	case mSync:
		_, off, err := numbers(msg)
		if err != nil {
			return err
		}
		s.syncAt = off
	case mConfirm:
		id, _, err := split(msg)
		if err != nil {
			return err
		}
		s.confirmed = max(s.confirmed, min(id, s.asked))
	case mRecall:
		if s.h.side == guest {
			return s.withdraw()
		}
	case mContest:
		s.contest()
	default:
		return errBadMessage
	}
	return nil
}

func (s *sink) commit() {
	s.mu.Lock()
	s.hold = false
	s.mu.Unlock()
	s.progress(false)
}

// flush tells home what the body has taken, and waits until home has acted on
// it; if nobody will read any more, until home is done.
func (s *sink) flush(ctx context.Context, final bool) error {
	s.mu.Lock()
	if s.released {
		s.mu.Unlock()
		return nil
	}
	s.final = s.final || final
	s.asked++
	err := s.look()
	if err == nil && !s.gone {
		err = s.withdraw() // others at home may read while the body does not
	}
	id := s.asked
	s.mu.Unlock()
	if err != nil {
		return err
	}
	s.progress(true)
	return s.changed.wait(ctx, s.h.released, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.confirmed >= id && !s.gone
	})
}

// drained waits until all that was received is written.
func (s *sink) drained(ctx context.Context) error {
	return s.changed.wait(ctx, s.h.released, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.empty()
	})
}

// release closes the pipe's end; see source.release.
func (s *sink) release() {
	s.mu.Lock()
	out, in, kept := s.out, s.in, s.kept
	s.out, s.in, s.kept, s.released = nil, nil, nil, true
	if s.timer != nil {
		s.timer.Stop()
	}
	s.mu.Unlock()
	s.h.c.watcher.remove(s.watch)
	s.h.c.witness.disarm(s.armed)
	if out != nil {
		out.Close()
	}
	if in != nil {
		in.Close()
	}
	kept.close()
}
