package rexec

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/deputy"
	"unum/sys"
)

// deputyOf returns a placement of this node once its deputy stands.
func (h *Homes) deputyOf(ctx context.Context, pid unum.Pid) (*placed, error) {
	h.mu.Lock()
	p := h.placed[pid]
	h.mu.Unlock()
	if p == nil {
		return nil, unum.ErrNoProcess
	}
	select {
	case <-p.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if p.stub == nil {
		return nil, unum.ErrNoProcess
	}
	return p, nil
}

// SignalBody sends a signal to the body of a process placed from here, past its
// deputy: SIGSTOP, which a deputy cannot hand on. The deputy stops when its
// body has.
func (h *Homes) SignalBody(ctx context.Context, pid unum.Pid, sig unix.Signal, info *sys.Siginfo) error {
	p, err := h.deputyOf(ctx, pid)
	if err != nil {
		return err
	}
	if info == nil {
		info = sys.MakeSiginfo(sig, 0, 0, 0)
	}
	if sig == unix.SIGSTOP {
		// A SIGCONT that was sent before must not arrive after it.
		if err := p.overtaken(ctx, bit(unix.SIGCONT)); err != nil {
			return err
		}
	}
	p.order.Lock()
	defer p.order.Unlock()
	_, err = unum.Call[struct{}](ctx, p.peer, "rexec.signal", &signalReq{ID: p.place.ID, Pid: pid, Info: *info})
	return err
}

// InDeputy makes the deputy of a process placed from here run a program.
func (h *Homes) InDeputy(ctx context.Context, pid unum.Pid, prog *deputy.Program) (*deputy.Result, error) {
	p, err := h.deputyOf(ctx, pid)
	if err != nil {
		return nil, err
	}
	return p.stub.Run(ctx, prog)
}

// AskDeputy is InDeputy for a program that leaves its answer in memory.
func (h *Homes) AskDeputy(ctx context.Context, pid unum.Pid, prog *deputy.Program, at uint64, out []byte) (*deputy.Result, error) {
	p, err := h.deputyOf(ctx, pid)
	if err != nil {
		return nil, err
	}
	type answer struct {
		r   *deputy.Result
		b   []byte
		err error
	}
	ch := make(chan answer, 1)
	err = p.stub.Start(nil, prog, func(r *deputy.Result, err error) {
		b := make([]byte, len(out))
		if err == nil {
			err = p.stub.Mem(at, b)
		}
		ch <- answer{r, b, err}
	})
	if err != nil {
		return nil, err
	}
	select {
	case a := <-ch:
		copy(out, a.b)
		return a.r, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// DeputyFile duplicates a descriptor that the deputy of a placement holds.
func (h *Homes) DeputyFile(pid unum.Pid, op uint64, num int) (*os.File, error) {
	h.mu.Lock()
	p := h.placed[pid]
	h.mu.Unlock()
	if p == nil || p.place.ID != op {
		return nil, unum.ErrNoProcess
	}
	// A caller that is not yet its deputy holds it under the same number.
	fd, err := sys.PidfdOpen(p.Host)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return sys.PidfdGetfd(fd, num)
}

// inGroup lists the processes of a group that are placed elsewhere: those
// whose deputies stand.
func (h *Homes) inGroup(pgid unum.Pid) (out []*placed) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.placed {
		if p.place.Pgid != pgid {
			continue
		}
		select {
		case <-p.ready:
			if p.stub != nil {
				out = append(out, p)
			}
		default:
		}
	}
	return out
}

// PlacedGroup says whether a process of the group is placed elsewhere.
func (h *Homes) PlacedGroup(pgid unum.Pid) bool { return len(h.inGroup(pgid)) > 0 }

// SyncTerminal tells the guests of a group that has become the foreground.
func (h *Homes) SyncTerminal(ctx context.Context, pgid unum.Pid) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for _, p := range h.inGroup(pgid) {
		if err := h.cfg.Terminal.Homes.Sync(ctx, p.place); err != nil {
			h.log.Warn("bring a terminal up to date", "pid", p.place.Pid, "err", err)
		}
	}
}

// Note adds a line to what Why says.
func (h *Homes) Note(pid unum.Pid, text string) {
	if old := h.whys.get(pid, 0); old != "" {
		text = old + "; " + text
	}
	h.whys.set(pid, text)
}

// EnsureGroup makes a process group of a session exist here, so that a member
// of the session can join it. Preconditions: the group exists at home.
func (g *Guests) EnsureGroup(ctx context.Context, sid, pgid unum.Pid) error {
	g.mu.Lock()
	s := g.sessions[sid]
	g.mu.Unlock()
	if s == nil || s.agent == nil {
		return nil
	}
	_, err := g.group(ctx, s, &Spec{Pgid: pgid, Sid: sid})
	return err
}

// Hosts says whether this node ever ran a body.
func (g *Guests) Hosts() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.sessions) > 0
}

// Count is how many bodies there are.
func (g *Guests) Count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.bodies)
}

// HostPids lists the bodies by their PID; 0 stands for a number that is not
// known yet.
func (g *Guests) HostPids() map[unum.Pid]int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.bodies) == 0 {
		return nil
	}
	out := make(map[unum.Pid]int, len(g.bodies))
	for pid, b := range g.bodies {
		host := 0
		select {
		case <-b.ready:
			if b.stub != nil {
				host = b.stub.HostPid
			}
		default:
		}
		out[pid] = host
	}
	return out
}

// send signals a body. One with a sender is queued by the session's agent: the
// kernel clears si_pid of what comes from outside of the receiver's PID
// namespace, as the daemon's does (send_signal_locked of kernel/signal.c).
func (g *Guests) send(b *body, sig unix.Signal, info *sys.Siginfo) error {
	if info == nil || info.Pid() == 0 || b.sess == nil || b.sess.agent == nil {
		return b.stub.Signal(sig, info)
	}
	p := &deputy.Program{}
	at := p.Do(unix.SYS_RT_SIGQUEUEINFO, uint64(b.place.Pid), uint64(sig), p.Bytes(info[:]), 0, 0, g.cfg.Cookie)
	res, err := b.sess.agent.Run(context.Background(), p)
	if err != nil {
		return b.stub.Signal(sig, info)
	}
	switch ret := res.Rets[at]; {
	case ret == 0:
		return nil
	case unix.Errno(-ret) == unix.ESRCH:
		return deputy.ErrGone
	}
	return b.stub.Signal(sig, info)
}
