package rexec

import (
	"time"

	"golang.org/x/sys/unix"

	"unum/ptrace"
	"unum/seccomp"
	"unum/sys"
)

// A caller is held from before the guest is asked until it is converted. Its
// body may run in that time, and be known to run: a signal that somebody sends
// it then must not end the caller, which has still the dispositions of before
// its exec, but wait for the deputy, which hands it on.

// beginHold begins to hold the caller: its tracer is woken while there is other
// work to do. isHeld follows.
func (h *Homes) beginHold(c *caller) {
	c.holding = h.tracer.Begin(func() error { return ptrace.Hold(c.n) })
}

// isHeld says whether the caller is held, if that was begun.
func (h *Homes) isHeld(c *caller) bool {
	if c.holding == nil {
		return c.held
	}
	err := <-c.holding
	c.holding, c.held = nil, err == nil
	if err != nil {
		h.log.Debug("hold a caller", "tid", c.n.Tid, "err", err)
	}
	return c.held
}

// hold holds the caller, unless it cannot be; then a signal may end it. stop
// must be called when it was converted or let go.
func (h *Homes) hold(c *caller) (stop func()) {
	if c.holding == nil {
		h.beginHold(c)
	}
	if !h.isHeld(c) {
		return func() {}
	}
	over, ended := make(chan struct{}), make(chan struct{})
	t := time.AfterFunc(helloSoon, func() {
		defer close(ended)
		h.reap(c, over)
	})
	return func() {
		close(over)
		if !t.Stop() {
			<-ended
		}
	}
}

// reap takes notice of the caller's death, if the guest takes long: its parent
// is told when its tracer has.
func (h *Homes) reap(c *caller, over <-chan struct{}) {
	fd, err := sys.PidfdOpen(c.task.Tgid)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		if n, _ := unix.Poll(p, 0); n > 0 {
			h.tracer.Do(func() error { ptrace.Reap(c.n.Tid); return nil })
			return
		}
		select {
		case <-over:
			return
		case <-time.After(helloSoon):
		}
	}
}

// perish kills a caller, as a deputy is whose body was on a node that is lost.
func (h *Homes) perish(c *caller, why string) {
	h.cfg.Failed(c.task.Pid)
	h.whys.set(c.task.Pid, why)
	h.log.Warn("a caller is killed", "pid", c.task.Pid, "path", c.path, "why", why)
	defer c.n.Errno(unix.EINTR) // nobody hears it
	fd, err := sys.PidfdOpen(c.task.Tgid)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	// The number of one that is held is its own until its tracer has let go.
	if !c.held && !c.n.Valid() {
		return
	}
	err = sys.PidfdSendSignal(fd, unix.SIGKILL, nil)
	if c.held && (err == nil || err == unix.ESRCH) {
		h.tracer.Do(func() error { ptrace.ReapKilled(c.n.Tid); return nil })
	}
}

// release answers a caller that is not converted: its exec fails with e, or is
// made here if that is 0. One that is held issues it again, and it is let
// through: what an exec waits for must not keep the tracer.
func (h *Homes) release(c *caller, e unix.Errno) {
	answer := c.n.Continue
	if e != 0 {
		answer = func() { c.n.Errno(e) }
	}
	if !h.isHeld(c) {
		answer()
		return
	}
	if e == 0 {
		h.mu.Lock()
		h.through[c.n.Tid] = c.task.Start
		h.mu.Unlock()
		answer = c.n.Restart
	}
	if err := h.tracer.Do(func() error { return ptrace.LetGo(c.n, answer) }); err != nil {
		h.log.Debug("let a caller go", "tid", c.n.Tid, "err", err)
		h.mu.Lock()
		delete(h.through, c.n.Tid)
		h.mu.Unlock()
	}
}

// letThrough answers an exec that is issued again since it stays here.
func (h *Homes) letThrough(n *seccomp.Notif) bool {
	h.mu.Lock()
	start, ok := h.through[n.Tid]
	delete(h.through, n.Tid)
	h.mu.Unlock()
	if !ok {
		return false
	}
	if t, err := sys.ReadTask(n.Tid); err != nil || t.Start != start {
		return false // another process of that number
	}
	n.Continue()
	return true
}
