package rexec

import (
	"log/slog"
	"sync"

	"golang.org/x/sys/unix"

	"unum"
	"unum/deputy"
	"unum/sys"
)

// childEvent is what a parent learned of a child.
type childEvent struct {
	pid   unum.Pid
	info  sys.Siginfo
	usage unum.Usage
}

// told is called with what one round of waiting has found. It must not block.
type told func([]childEvent)

// parent is a stub that bodies are children of.
type parent struct {
	agent *deputy.Stub

	wmu     sync.Mutex
	waiting bool          // a round of waitProgram is queued
	again   bool          // something ended meanwhile
	settled chan struct{} // closed after the first round of a new daemon; nil then
}

// watch begins to reap for an agent. What a daemon before this one had reaped
// and not yet written down is found in the agent.
func (s *parent) watch(cookie uint64, log *slog.Logger, tell told) {
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
func reap(s *parent, cookie uint64, log *slog.Logger, tell told) {
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
func (s *parent) settle() {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if s.settled != nil {
		close(s.settled)
		s.settled = nil
	}
}

// reaped reads what a round found; more says that it was full.
func reaped(s *parent, r *deputy.Result, at uint64, tell told) (more bool) {
	buf := make([]byte, waitSlots*waitSize)
	if err := s.agent.Mem(at, buf); err != nil {
		return false
	}
	var found []childEvent
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
		found = append(found, childEvent{pid, si, parseUsage(buf[i*waitSize+128:])})
	}
	if len(found) > 0 {
		tell(found)
	}
	return len(found) == waitSlots
}
