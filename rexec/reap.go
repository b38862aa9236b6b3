package rexec

import (
	"log/slog"

	"golang.org/x/sys/unix"

	"unum"
	"unum/deputy"
	"unum/sys"
)

// told is called with each event of an agent's child. It must not block.
type told func(pid unum.Pid, si *sys.Siginfo, u unum.Usage)

// watch begins to reap for an agent. What a daemon before this one had reaped
// and not yet written down is found in the agent.
func (s *session) watch(cookie uint64, log *slog.Logger, tell told) {
	s.agent.OnOrphan(func(r *deputy.Result) {
		if r.Tag == waitTag {
			reaped(s, r, deputy.FirstData, tell)
		}
	})
	s.agent.OnSignal(func(g *deputy.Signal) {
		if g.Info.Signo() == unix.SIGCHLD {
			reap(s, cookie, log, tell)
		}
		g.Done()
	})
}

// reap queues a round of waiting for an agent's children. It does not block.
// While a round is under way another request makes one more follow.
func reap(s *session, cookie uint64, log *slog.Logger, tell told) {
	s.wmu.Lock()
	if s.waiting {
		s.again = true
		s.wmu.Unlock()
		return
	}
	s.waiting = true
	s.wmu.Unlock()
	prog, at := waitProgram(cookie)
	err := s.agent.Start(nil, prog, func(r *deputy.Result, err error) {
		more := false
		if err == nil {
			more = reaped(s, r, at, tell)
		}
		s.wmu.Lock()
		more = more || s.again
		s.waiting, s.again = false, false
		s.wmu.Unlock()
		if more && err == nil {
			reap(s, cookie, log, tell)
			return
		}
		s.settle()
	})
	if err != nil {
		log.Error("wait for children", "agent", s.agent.Pid, "err", err)
		s.settle()
	}
}

// settle says that every end before the daemon's start is known.
func (s *session) settle() {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if s.settled != nil {
		close(s.settled)
		s.settled = nil
	}
}

// reaped reads what a round found; more says that it was full.
func reaped(s *session, r *deputy.Result, at uint64, tell told) (more bool) {
	buf := make([]byte, waitSlots*waitSize)
	if err := s.agent.Mem(at, buf); err != nil {
		return false
	}
	n := 0
	for i := range waitSlots {
		if i >= len(r.Rets) || r.Rets[i] != 0 {
			break
		}
		var si sys.Siginfo
		copy(si[:], buf[i*waitSize:])
		pid := unum.Pid(si.Pid())
		if pid == 0 {
			// Nobody had ended at that moment; somebody may have at the next.
			continue
		}
		n++
		tell(pid, &si, parseUsage(buf[i*waitSize+128:]))
	}
	return n == waitSlots
}
