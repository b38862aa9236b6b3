package pipe

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"unum/sys"
)

// Readers that come later.
//
// What was carried ahead lies in two pipes, and only one reader may take it. At
// the claim every other holder of the read end at home was at rest. It can leave
// its rest when the body stops or ends and children of the body live on (it
// waits no longer), when it was suspended in vfork by the exec itself, or by
// something rare, such as a signal handler. In each case:
//
//	open → fenced → open         nobody else can read after all
//	              → contested    for good
//
// Fenced, nothing is sent, and the sink takes back out of the body's pipe what
// the body has not taken (withdraw), so that the user's pipe holds exactly what
// nobody has read. Stop and end fence before anybody at home is told of them, so
// the next reader begins where the body left off. Of the rare ones a source
// learns when it looks around, before it feeds and at most lookAround apart.
//
// Contested, home reads like any other reader, and only when a process of the
// body's world waits for bytes: what it takes out of the user's pipe goes to a
// held pipe, which is then the source's. A reader that dies before it gets what
// was taken for it has had it: that is put back only if the user's pipe is empty.

// pipe is the user's pipe at home, and the body's at the guest.
func (s *source) pipe() *os.File {
	if s.user != nil {
		return s.user
	}
	return s.in
}

// fence stops the feeding until verify has decided; recalled says that the
// sink has nothing any more. Preconditions: mu is held.
func (s *source) fence(recalled bool) {
	if s.user == nil && s.h.side == home {
		s.fenced, s.recalled, s.recallSent = true, recalled, false
	}
}

// doubt has the sink take back what it can, and then looks who is there;
// contest: it is known that somebody is.
func (s *source) doubt(contest bool) {
	s.mu.Lock()
	if s.in != nil && s.user == nil && !s.fenced {
		s.fence(false)
	}
	s.mustContest = s.mustContest || contest
	s.mu.Unlock()
	s.kick(true)
}

// guard is the part of next that minds other readers. Preconditions: mu is
// held.
func (s *source) guard() ([]byte, error) {
	if s.h.side == guest {
		return nil, nil
	}
	if now := time.Now(); s.user == nil && !s.fenced && now.Sub(s.looked) > s.lookEvery {
		alone := s.h.c.alone(s.h.rec.Key.Ino, s.h.rec.Caller)
		s.looked = time.Now()
		s.lookEvery = max(lookAround, 50*s.looked.Sub(now))
		if !alone {
			s.fence(s.sent == 0)
			s.verify()
		}
	}
	switch {
	case s.user != nil:
		if !s.contestedSaid {
			s.contestedSaid = true
			return []byte{mContest}, nil
		}
		return nil, s.grant()
	case s.fenced && !s.recalled && !s.recallSent:
		s.recallSent = true
		return []byte{mRecall}, nil
	}
	return nil, nil
}

// lookAround is how often a source looks for other readers, before it feeds, if
// looking takes less than a fiftieth of that.
const lookAround = 100 * time.Millisecond

// How long verify waits for a holder to come to rest: in sum some 20 ms.
const (
	verifyFirst = 300 * time.Microsecond
	verifyTimes = 6
)

// verify starts the decision, if it is due. Preconditions: mu is held.
func (s *source) verify() {
	if s.in == nil || !s.fenced || !s.recalled || s.hold || s.verifying || s.user != nil {
		return
	}
	s.verifying = true
	s.h.spawn(func() {
		alone := false
		for i, d := 0, verifyFirst; i < verifyTimes && !alone; i, d = i+1, 2*d {
			alone = s.h.c.alone(s.h.rec.Key.Ino, s.h.rec.Caller)
			if !alone {
				select {
				case <-time.After(d):
				case <-s.h.ctx.Done():
					return
				}
			}
		}
		s.decide(alone)
	})
}

// decide ends the fence.
func (s *source) decide(alone bool) {
	s.feedMu.Lock()
	s.mu.Lock()
	s.verifying = false
	var err error
	if s.in != nil && s.user == nil && s.recalled {
		if !alone || s.mustContest {
			err = s.contest()
		}
		s.fenced, s.recalled = false, false
		s.looked = time.Now()
	}
	s.mu.Unlock()
	s.feedMu.Unlock()
	if err != nil {
		s.h.fail(err)
		return
	}
	s.kick(true)
}

// contest puts the held pipe between. Preconditions: feedMu and mu are held,
// and everything that was sent is consumed.
func (s *source) contest() error {
	if s.sent != s.consumed {
		return fmt.Errorf("contested with %d bytes at large", s.sent-s.consumed)
	}
	k, err := keptScratch(s.h.ctx, s.h.c.env.Keeper, s.h.heldName(), s.h.rec.Size)
	if err != nil {
		return err
	}
	s.h.page.set(fContested)
	s.user, s.in, s.fill = s.in, k.r, k.w
	s.h.c.log.Info("a pipe is read at home too: carrying by request", "pid", s.h.rec.Pl.Pid, "op", s.h.rec.Pl.ID)
	return nil
}

// resumeContested does the same for a successor.
func (s *source) resumeContested() error {
	k, err := takeScratch(s.h.c.env.Keeper, s.h.heldName())
	if err != nil {
		return err
	}
	s.user, s.in, s.fill = s.in, k.r, k.w
	return nil
}

// grant reads from the user's pipe for a reader that waits. Preconditions: mu
// is held.
func (s *source) grant() error {
	if s.want == 0 || s.hold {
		return nil
	}
	n, err := sys.Splice(s.user, s.fill, s.want)
	if err == unix.EAGAIN {
		return nil
	}
	if n > 0 {
		s.want = 0
	}
	return err
}

// wanting takes in a want.
func (s *source) wanting(l *link, msg []byte) error {
	n, _, err := split(msg)
	if err != nil {
		return err
	}
	s.mu.Lock()
	if s.link == l && s.user != nil {
		s.want = int(min(n, atomicWrite*16))
	}
	s.mu.Unlock()
	s.kick(true)
	return nil
}

// giveBack returns what was taken from the user's pipe for nobody.
// Preconditions: mu is held.
func (s *source) giveBack() {
	if s.user == nil {
		return
	}
	held, err := sys.PipeUnread(s.in)
	if err != nil || held == 0 {
		return
	}
	n := 0
	if now, err := sys.PipeUnread(s.user); err == nil && now == 0 {
		if w, err := sys.ReopenPipe(s.user, unix.O_WRONLY|unix.O_NONBLOCK); err == nil {
			n, _ = sys.Splice(s.in, w, held)
			w.Close()
		}
	}
	if n < held {
		s.h.c.log.Error("bytes read for a process that ended without them are lost", "pid", s.h.rec.Pl.Pid, "op", s.h.rec.Pl.ID, "bytes", held-n)
	}
}

// alone says that nobody but the body of deputy caller can read the pipe now.
func (c *Carrier) alone(ino uint64, caller int) bool {
	hs, err := holders(c.env, ino)
	if err != nil {
		return false
	}
	for _, h := range hs {
		if h.read && !(c.env.Deputy != nil && c.env.Deputy(h.pid)) && !h.passing(true) && stanceOf(h.pid, caller) != waiting {
			return false
		}
	}
	return true
}
