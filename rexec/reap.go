package rexec

import (
	"errors"
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

// parent is a stub that bodies are children of. One that is killed, or that
// has retired, may be followed by another.
type parent struct {
	agent   *deputy.Stub
	settled chan struct{} // closed after the first round of a new daemon; nil then
}

// waiter waits for the children of one agent. What an agent still says when it
// has a successor, or the parent has none any more, concerns this one alone.
type waiter struct {
	agent  *deputy.Stub
	cookie uint64
	log    *slog.Logger
	tell   told

	mu      sync.Mutex
	waiting bool          // a round of waitProgram is queued
	again   bool          // something ended meanwhile
	settled chan struct{} // as the parent's
}

// watch begins to reap for the agent. What a daemon before this one had reaped
// and not yet written down is found in the agent.
func (s *parent) watch(cookie uint64, log *slog.Logger, tell told) *waiter {
	w := &waiter{agent: s.agent, cookie: cookie, log: log, tell: tell, settled: s.settled}
	s.settled = nil
	s.agent.OnOrphan(func(res *deputy.Result) {
		if res.Tag == waitTag {
			w.reaped(res, deputy.FirstData)
		}
	})
	s.agent.OnSignal(func(g *deputy.Signal) {
		if g.Info.Signo() == unix.SIGCHLD {
			w.reap()
		}
		g.Done()
	})
	return w
}

// reap queues a round of waiting for the agent's children. It does not block.
// While a round is under way another request makes one more follow.
func (w *waiter) reap() {
	w.mu.Lock()
	if w.waiting {
		w.again = true
		w.mu.Unlock()
		return
	}
	w.waiting = true
	w.mu.Unlock()
	prog, at := waitProgram(w.cookie)
	err := w.agent.Start(nil, prog, func(res *deputy.Result, err error) {
		more := false
		if err == nil {
			more = w.reaped(res, at)
		}
		w.mu.Lock()
		more = more || w.again
		w.waiting, w.again = false, false
		w.mu.Unlock()
		if more && err == nil {
			w.reap()
			return
		}
		w.settle()
	})
	if err != nil {
		if !errors.Is(err, deputy.ErrGone) {
			w.log.Error("wait for children", "agent", w.agent.Pid, "err", err)
		}
		w.settle()
	}
}

// settle says that every end before the daemon's start is known.
func (w *waiter) settle() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.settled != nil {
		close(w.settled)
		w.settled = nil
	}
}

// reaped reads what a round found; more says that it was full.
func (w *waiter) reaped(res *deputy.Result, at uint64) (more bool) {
	buf := make([]byte, waitSlots*waitSize)
	if err := w.agent.Mem(at, buf); err != nil {
		return false
	}
	var found []childEvent
	for i := range waitSlots {
		if i >= len(res.Rets) || res.Rets[i] != 0 {
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
		w.tell(found)
	}
	return len(found) == waitSlots
}
