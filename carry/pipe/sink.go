package pipe

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

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
	if s.h.side == home && !s.hold && (s.gone || s.ended && s.empty()) {
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
	watch, armed := s.watch, s.armed
	s.out, s.in, s.kept, s.released = nil, nil, nil, true
	if s.timer != nil {
		s.timer.Stop()
	}
	s.mu.Unlock()
	s.h.c.watcher.remove(watch)
	s.h.c.witness.disarm(armed)
	if out != nil {
		out.Close()
	}
	if in != nil {
		s.h.c.idle(in, -1)
		in.Close()
	}
	kept.close()
}
