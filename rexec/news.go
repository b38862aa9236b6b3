package rexec

import (
	"context"
	"sync"

	"golang.org/x/sys/unix"

	"unum"
	"unum/sys"
)

// Codes of SIGCHLD (man 2 sigaction).
const (
	cldExited = 1 + iota
	cldKilled
	cldDumped
	cldTrapped
	cldStopped
	cldContinued
)

// endedAll is ended for all that a session's agent has found.
func (g *Guests) endedAll(evs []childEvent) {
	for i := range evs {
		g.ended(&evs[i], nil)
	}
}

// ended hands an event of a body on to its home, when all of wait are closed. It
// does not block.
func (g *Guests) ended(ev *childEvent, wait []<-chan struct{}) {
	pid, si, u := ev.pid, &ev.info, ev.usage
	g.mu.Lock()
	b := g.find(pid)
	g.mu.Unlock()
	if b != nil { // else a holder
		g.happened(b, si, u, wait)
	}
}

func (g *Guests) happened(b *body, si *sys.Siginfo, u unum.Usage, wait []<-chan struct{}) {
	pid := b.place.Pid
	g.mu.Lock()
	if g.find(pid) != b || !b.born {
		g.mu.Unlock()
		return // known already, or a birth that failed
	}
	e := &eventReq{ID: b.place.ID, Pid: pid, Status: int(si.Status()), Usage: u}
	switch si.Code() {
	case cldExited:
		e.Kind = exited
	case cldKilled, cldDumped:
		e.Kind, e.Core = killed, si.Code() == cldDumped
	case cldStopped, cldTrapped:
		e.Kind = stopped
	case cldContinued:
		e.Kind = continued
	}
	g.seq = max(g.seq+1, monotonic())
	e.Seq = g.seq
	b.news = e.Seq
	final := e.Kind == exited || e.Kind == killed
	if final {
		e.After = b.after
		b.over = true
		if b.adopted() {
			delete(g.orphans, pid)
		} else {
			delete(g.bodies, pid)
		}
		g.untold[b.place.ID] = b
	}
	// Its agent forgets it with our answer. Of a body that lives the last news
	// is enough.
	if err := g.recEvents.save(b.key(), e); err != nil {
		g.log.Error("write down what a body did", "pid", pid, "err", err)
	}
	prev := b.last
	done := make(chan struct{})
	b.last = done
	g.wg.Add(1)
	g.mu.Unlock()
	go func() {
		defer g.wg.Done()
		defer close(done)
		<-b.ready
		if prev != nil {
			<-prev
		}
		for _, c := range wait {
			<-c
		}
		switch {
		case b.stub != nil:
			g.tell(b, e, final)
		case b.adopted() && final:
			g.forget(b)
		} // else its birth failed, and it is forgotten
	}()
}

// monotonic is a clock of this node that never goes back, also from one daemon
// to the next.
func monotonic() uint64 {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return uint64(ts.Nano())
}

// tell flushes what the body wrote and tells home; in order for each body.
func (g *Guests) tell(b *body, e *eventReq, final bool) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if e.Kind != continued {
		var wg sync.WaitGroup
		for _, c := range b.guests {
			wg.Go(func() {
				if err := c.Flush(ctx, final); err != nil {
					g.log.Warn("flush a descriptor", "pid", e.Pid, "err", err)
				}
			})
		}
		wg.Wait()
	}
	if final && g.cfg.Reaped != nil {
		e.Usage.Add(g.cfg.Reaped(b.stub.HostPid))
	}
	if final {
		g.handedOn(ctx, b.place.Home)
	}
	peer, err := g.cfg.Peer(b.place.Home)
	if err == nil {
		_, err = unum.Call[struct{}](ctx, peer, "rexec.event", e)
	}
	if err != nil {
		g.log.Warn("tell home", "pid", e.Pid, "event", e.Kind, "home", b.place.Home, "err", err)
	}
	if !final {
		g.mu.Lock()
		if b.news == e.Seq {
			g.recEvents.remove(b.key())
		}
		g.mu.Unlock()
		return
	}
	for _, c := range b.guests {
		c.Close()
	}
	g.forget(b)
}

// forget drops a body that has ended and of whose end home knows.
func (g *Guests) forget(b *body) {
	g.recBodies.remove(b.key())
	g.recEvents.remove(b.key())
	g.mu.Lock()
	delete(g.untold, b.place.ID)
	g.mu.Unlock()
	g.quit(b)
	g.leave(b.sess)
	g.retire(b.sess)
}
