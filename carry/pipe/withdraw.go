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
