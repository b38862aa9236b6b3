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

// source is the half whose pipe is read: the user's at home for pipe-read, the
// body's at the guest for pipe-write. It never takes what the sink has not
// reported as taken: bytes are duplicated out of the pipe (tee) and sent, and
// consumed when the sink says so. What is on its way is thus always still in
// the pipe, and a broken link or a dead daemon costs no more than sending it
// again. The writers of the pipe feel its own capacity and nothing else.
//
//	consumed ≤ acked ≤ sent ≤ consumed + what the pipe holds
//
// Consuming n bytes has four steps: splice them into the kept scratch pipe;
// store (consumed+n, moving); empty the scratch; store (consumed+n, idle). So a
// successor knows exactly: in phase idle, what the scratch holds was consumed
// and not yet counted; in phase moving it was counted.
//
// Lock order: feedMu, mu.
type source struct {
	h      *half
	packet bool // the pipe holds records

	feedMu sync.Mutex // held while a message is made and sent, so that they are in order

	mu       sync.Mutex
	in       *os.File // our description of the pipe; nil when released
	kept     *scratch // nil until needed
	link     *link
	ready    bool   // we know what the sink has
	fresh    bool   // no link yet, in no incarnation: the sink has what was prefilled
	hold     bool   // before Commit: consume nothing
	wanted   uint64 // free of the sink, while hold
	over     bool   // nobody will read more
	confirm  uint64 // the confirm asked for with it
	consumed uint64
	acked    uint64 // wrote of the sink
	sent     uint64
	endSent  bool   // on this link
	needed   uint64 // a Flush waits for acked to reach this
	syncSent bool
	changed  signal

	// See contest.go.
	user          *os.File // contested: the user's pipe, while in is the held one
	fill          *os.File // contested: the write end of the held pipe
	fenced        bool     // send nothing: somebody else may read
	recalled      bool     // fenced: the sink has nothing that was not taken
	recallSent    bool     // on this link
	mustContest   bool
	withdrawals   uint64 // of the sink, as far as they are known
	verifying     bool
	want          int  // a reader of the body waits for so much
	contestedSaid bool // on this link
	looked        time.Time
	lookEvery     time.Duration
}

// resume brings the counts in order; see source. The caller owns s alone.
func (s *source) resume() error {
	n, phase := s.h.page.count()
	k, err := takeScratch(s.h.c.env.Keeper, s.h.scratchName())
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return err
	default:
		s.kept = k
		left := k.left()
		if phase == idle {
			n += uint64(left)
		}
		s.h.page.setCount(n, moving)
		if err := k.drop(s.h.c.null, left); err != nil {
			return err
		}
	}
	s.h.page.setCount(n, idle)
	s.consumed, s.acked, s.sent = n, n, n
	return nil
}

// pump feeds whenever something was written to the pipe. Its goroutine ends
// when in is closed.
//
// An edge comes at the end of every write, also when the pipe was not empty:
// the kernel promises that to epoll (poll_usage in fs/pipe.c, 5.14 and stable
// trees). But a write that fills the pipe and waits for room has its edge only
// if the pipe was empty before. So consume is followed by another look: what
// is in the pipe was either there at the last look, and sent, so that its being
// taken will be told; or it is seen now; or the pipe is empty.
func (s *source) pump(in *os.File) {
	rc, err := in.SyscallConn()
	if err != nil {
		return
	}
	for {
		err := rc.Read(func(uintptr) bool {
			s.feed()
			return false
		})
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		in.SetReadDeadline(time.Time{})
	}
}

// feed sends all that can be sent.
func (s *source) feed() {
	s.feedMu.Lock()
	defer s.feedMu.Unlock()
	for {
		msg, l, err := s.next()
		if err != nil {
			s.h.fail(err)
			return
		}
		if msg == nil {
			return
		}
		err = l.send(msg)
		s.h.c.bufs.put(msg)
		if err != nil {
			s.detached(l)
			return
		}
	}
}

func (s *source) attached(l *link) {
	s.mu.Lock()
	if s.in == nil {
		s.mu.Unlock()
		return
	}
	s.link, s.endSent, s.syncSent = l, false, false
	s.recallSent, s.contestedSaid, s.want = false, false, 0
	s.ready, s.fresh = s.fresh, false
	if s.hold {
		// What another sink said was of a body that was never born.
		s.wanted, s.confirm, s.over = s.consumed, 0, false
	}
	s.mu.Unlock()
	s.feed()
}

func (s *source) detached(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link == l {
		s.link, s.ready = nil, false
	}
}

func (s *source) message(l *link, msg []byte) error {
	if msg[0] == mWant {
		return s.wanting(l, msg)
	}
	a, err := decodeAck(msg)
	if err != nil {
		return err
	}
	begins, err := s.learn(l, a)
	if err != nil {
		return err
	}
	if a.gone && s.h.side == home {
		s.h.closed.Store(a.closed)
		return s.finish()
	}
	if err := s.settle(); err != nil {
		return err
	}
	s.kick(begins)
	return nil
}

// learn takes in an ack; begins says that it is the first of its link.
func (s *source) learn(l *link, a ack) (begins bool, err error) {
	s.mu.Lock()
	back := a.recalled > s.withdrawals
	s.mu.Unlock()
	if back { // only we change withdrawals
		s.feedMu.Lock() // what is being sent will be thrown away
		defer s.feedMu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in == nil || s.link != l {
		return false, nil
	}
	held, err := sys.PipeUnread(s.in)
	if err == nil && a.wrote > s.consumed+uint64(held) && a.recalled >= s.withdrawals {
		err = fmt.Errorf("the sink has %d bytes of %d: %w", a.wrote, s.consumed+uint64(held), errBadMessage)
	}
	if err != nil {
		return false, err
	}
	begins = !s.ready
	switch {
	case begins || back:
		s.ready, s.sent = true, max(a.wrote, s.consumed)
		s.withdrawals, s.endSent = a.recalled, false
		if back {
			s.fence(true)
		}
	case a.recalled == s.withdrawals:
		s.sent = max(s.sent, a.wrote) // it may have had on the way what we did not know it had
	}
	s.acked = max(s.acked, a.wrote)
	s.wanted = max(s.wanted, a.free)
	s.confirm = max(s.confirm, a.confirm)
	s.changed.broadcast()
	return begins, nil
}

// settle consumes what the sink wants consumed, and confirms it.
func (s *source) settle() error {
	s.mu.Lock()
	if s.in == nil || s.hold {
		s.mu.Unlock()
		return nil
	}
	err := s.consume(s.wanted)
	id, l := s.confirm, s.link
	s.confirm = 0
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if id != 0 && l != nil {
		l.send(head(mConfirm, id))
	}
	s.mu.Lock()
	s.verify()
	s.mu.Unlock()
	return nil
}

// finish is the end at home: the body and its children have let go. Before
// Commit it waits for it: what the body has read is yet to be consumed.
func (s *source) finish() error {
	s.mu.Lock()
	s.over = true
	if s.in == nil || s.hold {
		s.mu.Unlock()
		return nil
	}
	err := s.consume(s.wanted)
	if err == nil {
		s.giveBack()
	}
	s.mu.Unlock()
	s.h.release()
	return err
}

// kick makes the pump look again, if there is something to see or anyway.
func (s *source) kick(anyway bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in == nil {
		return
	}
	held, err := sys.PipeUnread(s.in)
	if err != nil || s.consumed+uint64(held) > s.sent || s.needed > s.acked || anyway {
		s.pipe().SetReadDeadline(time.Unix(1, 0))
	}
}

func (s *source) commit() {
	s.mu.Lock()
	s.hold = false
	s.verify()
	settle := s.settle
	if s.over {
		settle = s.finish
	}
	s.mu.Unlock()
	if err := settle(); err != nil {
		s.h.fail(err)
	}
	s.kick(true) // a contested reader may have asked meanwhile
}

// flush waits until the sink has written all that the pipe holds now, and, if
// no writer is left, until home is done with it.
func (s *source) flush(ctx context.Context, final bool) error {
	s.mu.Lock()
	if s.in == nil {
		s.mu.Unlock()
		return nil
	}
	// In this order: the end is final only for what came before it.
	ev, err := sys.Poll(s.in, unix.POLLIN)
	held, err2 := sys.PipeUnread(s.in)
	if err = errors.Join(err, err2); err != nil {
		s.mu.Unlock()
		return err
	}
	ended := final && ev&unix.POLLHUP != 0
	s.needed, s.syncSent = max(s.needed, s.consumed+uint64(held)), false
	target := s.needed
	s.mu.Unlock()
	s.kick(true)
	return s.changed.wait(ctx, s.h.released, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.acked >= target && !ended
	})
}

// hungUp says that a pipe has no writer any more.
func hungUp(f *os.File) bool {
	ev, err := sys.Poll(f, unix.POLLIN)
	return err == nil && ev&unix.POLLHUP != 0
}

// release closes the pipe's end. It waits for the pump, so it is called from
// neither the pump nor under mu.
func (s *source) release() {
	s.mu.Lock()
	files, kept := []*os.File{s.in, s.user, s.fill}, s.kept
	s.in, s.user, s.fill, s.kept = nil, nil, nil, nil
	s.mu.Unlock()
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
	kept.close()
}
