package pipe

import (
	"fmt"

	"golang.org/x/sys/unix"

	"unum/sys"
)

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
		s.h.c.idle(s.in, 1)
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
