package rexec

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/deputy"
	"unum/sys"
)

// A deputy is stopped as its body is, so that the parent hears of it, and goes
// on by itself when the parent continues it; the SIGCONT that it then finds is
// passed on. The news of a body's stop and the SIGCONT travel in opposite
// directions and may be told twice when a daemon has died, so neither is
// believed as it stands: home asks the guest whether the body stands still,
// while no signal is on its way to it (placed.order). If it runs, the news is
// old. What a SIGCONT finds not yet begun is passed over (turns), and a stop
// that has begun looks for one that is pending, which it would sweep away. What
// comes after that look and is swept away was sent by this daemon, since kill is
// trapped for it, and is sent again (Continued).

// haltedReq asks whether a body stands stopped.
type haltedReq struct {
	ID  uint64
	Pid unum.Pid
}

type haltedRes struct{ Halted bool }

// halted says whether a body stands stopped, or traced, or is about to end.
func (g *Guests) halted(req *haltedReq) *haltedRes {
	g.mu.Lock()
	b := g.find(req.Pid)
	g.mu.Unlock()
	if b == nil || b.place.ID != req.ID {
		return &haltedRes{}
	}
	<-b.ready
	if b.stub == nil {
		return &haltedRes{}
	}
	t, err := sys.ReadTask(b.stub.HostPid)
	return &haltedRes{err == nil && (t.State == 'T' || t.State == 't' || t.State == 'Z')}
}

// halted asks the guest. Preconditions: p.order is held.
func (h *Homes) halted(ctx context.Context, p *placed) (bool, error) {
	res, err := unum.Call[haltedRes](ctx, p.peer, "rexec.halted", &haltedReq{ID: p.place.ID, Pid: p.place.Pid})
	if err != nil {
		return false, err
	}
	return res.Halted, nil
}

// stop stops the deputy by the signal that stopped its body.
func (h *Homes) stop(ctx context.Context, p *placed, e *eventReq) error {
	sig := unix.Signal(e.Status)
	if p.TTY != nil && (sig == unix.SIGTTIN || sig == unix.SIGTTOU) && h.cfg.Terminal.Homes.Foreground(p.place) {
		// The guest did not know yet that the group is in the foreground.
		if err := h.cfg.Terminal.Homes.Sync(ctx, p.place); err != nil {
			return err
		}
		go h.signalBody(p, unix.SIGCONT)
		return nil
	}
	h.drain(ctx, p)
	begun, err := h.halt(ctx, p, e)
	if err != nil || begun == nil {
		return err
	}
	// From then on it needs no daemon.
	select {
	case <-begun:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// halt gives the deputy its stop, unless there is no need for it; begun is then
// nil.
func (h *Homes) halt(ctx context.Context, p *placed, e *eventReq) (begun chan struct{}, err error) {
	p.order.Lock()
	defer p.order.Unlock()
	if halted, err := h.halted(ctx, p); err != nil || !halted {
		return nil, err
	}
	if t, err := sys.ReadTask(p.Host); err == nil && t.State == 'T' {
		return nil, nil // stopped already, by a SIGSTOP
	}
	p.mu.Lock()
	if e.Seq <= p.seen || p.inStop {
		// Told to the daemon before this one, which did it; or under way.
		p.mu.Unlock()
		return nil, nil
	}
	p.seen, p.inStop = e.Seq, true
	p.turns++
	turn := p.turns
	p.mu.Unlock()
	prog := stopProgram(uint64(e.Status), h.cfg.Cookie)
	prog.Tag = e.Seq << 1
	begun = make(chan struct{})
	tell := sync.OnceFunc(func() { close(begun) })
	return begun, p.stub.Begin(deputy.First{
		Prog: prog, Begun: tell,
		Skip: func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.turns != turn
		},
		Done: func(*deputy.Result, error) {
			p.mu.Lock()
			p.inStop = false
			p.mu.Unlock()
			tell()
		},
	})
}

// continued continues the deputy if its body was continued by another way.
func (h *Homes) continued(ctx context.Context, p *placed) error {
	p.order.Lock()
	defer p.order.Unlock()
	if halted, err := h.halted(ctx, p); err != nil || halted {
		return err
	}
	h.resume(p)
	return nil
}

// echoCode is the si_code of a SIGCONT for a deputy that comes from its body
// and is not passed on.
const echoCode = -61

// resume continues a deputy that still stands stopped although its body runs
// or has ended: the SIGCONT came to the body by another way.
func (h *Homes) resume(p *placed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.inStop {
		return
	}
	p.turns++
	turn := p.turns
	echo := sys.MakeSiginfo(unix.SIGCONT, echoCode, 0, 0)
	p.stub.Signal(unix.SIGCONT, echo)
	// A stop that was just beginning sweeps it away.
	h.wg.Go(func() {
		p.watchStop(turn, func() { p.stub.Signal(unix.SIGCONT, echo) })
	})
}

// Continued is told of a SIGCONT that was sent to a deputy. If that came between
// the calls of a stop that was beginning, the stop has swept it away: then it is
// sent again when the deputy stands stopped. One that the kernel sends, to a
// group that is orphaned, is not known here.
func (h *Homes) Continued(pid unum.Pid, info *sys.Siginfo) {
	h.mu.Lock()
	p := h.placed[pid]
	h.mu.Unlock()
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.inStop || p.stub == nil {
		return
	}
	turn := p.turns // counts on when the signal has reached the deputy
	h.wg.Go(func() {
		p.watchStop(turn, func() { p.stub.Signal(unix.SIGCONT, info) })
	})
}

// watchStop calls again whenever the deputy stands stopped, until it is through
// with its stop, or has been given another one.
func (p *placed) watchStop(turn uint64, again func()) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-p.done:
			return
		}
		p.mu.Lock()
		over := !p.inStop || p.turns != turn
		p.mu.Unlock()
		if over {
			return
		}
		if t, err := sys.ReadTask(p.Host); err == nil && t.State == 'T' {
			again()
		}
	}
}

// goesOn notes a SIGCONT that has reached the deputy, and says whether it is
// for the body.
func (p *placed) goesOn(info *sys.Siginfo) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.turns++
	return info.Code() != echoCode
}

// recall finds in the deputy which stop it was given last. A program's tag is
// twice the number of a stop that it does, and one more if it came after it.
func (p *placed) recall(stub *deputy.Stub) error {
	tag, begun, err := stub.Last()
	if err != nil || tag == 0 {
		return err
	}
	p.seen = tag >> 1
	if tag&1 != 0 {
		return nil
	}
	if !begun {
		p.seen-- // it was written, and the daemon died before it said: run
		return nil
	}
	t, err := sys.ReadTask(p.Host)
	p.inStop = err == nil && t.State == 'T'
	return nil
}
