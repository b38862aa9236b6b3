package pipe

import (
	"fmt"
	"os"
	"strconv"
	"strings"
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
		if h.read && !(c.env.Deputy != nil && c.env.Deputy(h.pid)) && stanceOf(h.pid, caller) != waiting {
			return false
		}
	}
	return true
}

// withdraw takes back what the body has not taken. What the source sends until
// it has heard of it is thrown away. Preconditions: mu is held; guest.
func (s *sink) withdraw() error {
	if s.released || s.gone || s.out == nil && s.in == nil {
		return nil
	}
	s.withdrawals++
	s.asked++
	s.deaf = s.asked
	s.pending, s.recs, s.wanting = nil, nil, false
	if s.kept == nil {
		k, err := keptScratch(s.h.ctx, s.h.c.env.Keeper, s.h.scratchName(), 1<<16)
		if err != nil {
			return err
		}
		s.kept = k
	}
	if s.kleft > 0 {
		s.h.page.setCount(s.wrote, idle) // what the scratch holds is void now
		if err := s.kept.drop(s.h.c.null, s.kleft); err != nil {
			return err
		}
		s.kleft = 0
	}
	if err := s.unend(); err != nil {
		return err
	}
	r, err := sys.ReopenPipe(s.out, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		s.h.page.setCount(s.wrote, taking)
		n, err := sys.Splice(r, s.kept.w, s.kept.size)
		s.wrote -= uint64(n)
		s.h.page.setCount(s.wrote, idle)
		if err == unix.EAGAIN {
			break
		}
		if err != nil {
			return err
		}
		if err := s.kept.drop(s.h.c.null, n); err != nil {
			return err
		}
	}
	s.next, s.told, s.tail = s.wrote, min(s.told, s.wrote), 0
	return nil
}

// unend takes back an end of file that nobody can have seen yet, since there
// are bytes before it.
func (s *sink) unend() error {
	s.ended = false
	if s.out != nil {
		return nil
	}
	out, err := sys.ReopenPipe(s.in, unix.O_WRONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	k := s.h.c.env.Keeper
	if err := k.Keep(s.h.ctx, s.h.pipeName(), out); err != nil {
		out.Close()
		return err
	}
	s.h.page.clear(fEnded)
	s.in.Close()
	s.in, s.out = nil, out
	s.h.spawn(func() { s.pump(out) })
	return k.Drop(s.h.ctx, s.h.endName())
}

// contest begins to ask for bytes. Preconditions: mu is held.
func (s *sink) contest() {
	if s.contested {
		return
	}
	s.contested = true
	s.h.spawn(s.ask)
}

// How often the body's world is looked through for a waiting reader.
const (
	askFirst = time.Millisecond
	askLast  = 16 * time.Millisecond
)

// ask tells home of readers that wait, until the half is released.
func (s *sink) ask() {
	pause := askFirst
	for {
		select {
		case <-s.h.released:
			return
		case <-s.h.ctx.Done():
			return
		case <-time.After(pause):
		}
		s.mu.Lock()
		var l *link
		var out *os.File
		if free, err := s.free(); err == nil && free == s.wrote && s.empty() && !s.wanting && s.deaf <= s.confirmed {
			l, out = s.link, s.out
		}
		s.mu.Unlock()
		if l == nil || out == nil {
			continue
		}
		n := s.h.c.waitingReaders(out)
		if n == 0 {
			pause = min(2*pause, askLast)
			continue
		}
		pause = askFirst
		s.mu.Lock()
		s.wanting = s.link == l
		s.mu.Unlock()
		l.send(head(mWant, uint64(n)))
	}
}

// waitingReaders returns how many bytes a process of the world waits for that
// reads from the pipe behind f: what its read asks for, one if it polls, 0 if
// nobody waits.
func (c *Carrier) waitingReaders(f *os.File) int {
	var st unix.Stat_t
	if fstat(f, &st) != nil {
		return 0
	}
	hs, err := holders(c.env, st.Ino)
	if err != nil {
		return 0
	}
	most := 0
	for _, h := range hs {
		if !h.read {
			continue
		}
		tasks, _ := sys.ReadDirNames(fmt.Sprintf("/proc/%d/task", h.pid))
		for _, tid := range tasks {
			most = max(most, waitsFor(h.pid, tid, st.Ino))
		}
	}
	return most
}

func waitsFor(pid int, tid string, ino uint64) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/syscall", pid, tid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) < 4 {
		return 0
	}
	nr, err := strconv.Atoi(f[0])
	if err != nil {
		return 0
	}
	fd, _ := strconv.ParseUint(f[1], 0, 64)
	n, _ := strconv.ParseUint(f[3], 0, 64)
	reads := func() bool {
		l, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, int32(fd)))
		return l == fmt.Sprintf("pipe:[%d]", ino)
	}
	switch nr {
	case unix.SYS_READ:
		if reads() {
			return int(min(n, atomicWrite*16))
		}
	case unix.SYS_READV, unix.SYS_SPLICE, unix.SYS_TEE:
		if reads() {
			return atomicWrite
		}
	case unix.SYS_PPOLL, unix.SYS_PSELECT6, unix.SYS_EPOLL_PWAIT, sysPoll, sysSelect, sysEpollWait:
		return 1
	}
	return 0
}
