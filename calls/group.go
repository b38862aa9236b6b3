package calls

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"unum"
	"unum/deputy"
	"unum/seccomp"
	"unum/sys"
)

// groupReq is a signal for the members of a process group, or for everybody, on
// one node.
type groupReq struct {
	From Sender
	Pgid unum.Pid // 0: everybody
	Sig  int
	ID   uint64 // tells one from another; the same if it is asked again
}

// groupRes counts. A process that may not be signalled is found, not sent.
// Bodies have been given the signal where they run, and must not have it again.
type groupRes struct{ Found, Sent, Bodies int }

func (r *groupRes) add(o groupRes) {
	r.Found += o.Found
	r.Sent += o.Sent
	r.Bodies += o.Bodies
}

// errno is what kill returns (kill_something_info of kernel/signal.c).
func (r *groupRes) errno() unix.Errno {
	switch {
	case r.Found == 0:
		return unix.ESRCH
	case r.Sent == 0:
		return unix.EPERM
	}
	return 0
}

// role is what a process of this node's world is to a signal for a group.
type role int

const (
	native role = iota // born here, runs here
	away               // born here, its deputy: the body is elsewhere
	body               // born elsewhere, runs here
	stub               // holds a number, or passes on a placement: not meant
)

// member is one process of the group on this node.
type member struct {
	role role
	task *sys.Task
}

// group is what this node's world has of a process group.
type group []member

// role decides by the number and by who knows it.
func (c *Calls) role(t *sys.Task) role {
	known := c.cfg.Registry.Find(t.Tgid) != nil
	_, placed := c.cfg.Placed.Where(t.Pid)
	switch {
	case t.Pid == 1:
		return stub
	case c.own(t.Pid) && placed:
		return away
	case known || placed: // an agent, a holder, or the middle of a chain
		return stub
	case c.own(t.Pid):
		return native
	}
	return body
}

// members lists the group; pgid 0 is everybody.
func (c *Calls) members(pgid unum.Pid) (group, error) {
	pids, err := c.cfg.World.HostPids()
	if err != nil {
		return nil, err
	}
	var g group
	for _, p := range pids {
		t, err := sys.ReadTask(p)
		// Deeper PID namespaces have groups of their own.
		if err != nil || t.Depth != c.depth || pgid != 0 && t.Pgid != pgid {
			continue
		}
		g = append(g, member{c.role(t), t})
	}
	return g, nil
}

// plain says that the kernel's own kill reaches exactly who is meant.
func (g group) plain(sig unix.Signal) bool {
	for _, m := range g {
		if m.role == body || m.role == stub || m.role == away && (sig == unix.SIGSTOP || sig == unix.SIGCONT) {
			return false
		}
	}
	return true
}

// killGroup answers kill(0), kill(-pgid) and kill(-1); pgid is 0, the group or
// 1. Every node has it as one message; bodies on the caller's node have it in
// any case before kill returns, so that a process that signals its own group
// does, too.
func (c *Calls) killGroup(ctx context.Context, n *seccomp.Notif, pgid unum.Pid, sig unix.Signal) {
	t, nested, err := c.caller(n)
	if err != nil || nested || sig < 0 || sig > 64 {
		n.Continue()
		return
	}
	s := senderOf(t)
	all := pgid == 1
	switch pgid {
	case 0:
		pgid = s.Pgid
	case 1:
		pgid = 0
	}
	others := c.cfg.Others()
	if len(others) == 0 && !all {
		n.Continue()
		return
	}
	req := &groupReq{From: s, Pgid: pgid, Sig: int(sig), ID: n.ID}
	sum := c.ask(ctx, others, req)
	if ctx.Err() != nil {
		return // the next daemon asks again
	}
	if !all && sum.Bodies == 0 {
		g, err := c.members(pgid)
		if err != nil {
			n.Errno(unix.EPERM)
			return
		}
		// The kernel also knows of zombies, which are not listed.
		if g.plain(sig) && (sum.Sent == 0 && (sum.Found == 0 || len(g) > 0) || g.may(&s, sig)) {
			n.Continue()
			return
		}
	}
	res, err := c.signal(ctx, req, true, t.Tgid)
	if err != nil {
		c.log.Warn("signal a group", "pgid", req.Pgid, "err", err)
		n.Errno(unix.EPERM)
		return
	}
	sum.add(*res)
	if no := sum.errno(); no != 0 {
		n.Errno(no)
		return
	}
	n.Return(0)
}

// may says whether the sender may signal somebody of the group.
func (g group) may(s *Sender, sig unix.Signal) bool {
	for _, m := range g {
		if s.mayKill(m.task, sig) {
			return true
		}
	}
	return false
}

// ask lets the other nodes signal their members.
func (c *Calls) ask(ctx context.Context, nodes []unum.NodeID, req *groupReq) (sum groupRes) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, id := range nodes {
		wg.Go(func() {
			peer, err := c.cfg.Peer(id)
			var res *groupRes
			if err == nil {
				res, err = unum.Call[groupRes](ctx, peer, "calls.killpg", req)
			}
			if err != nil {
				if !errors.Is(err, unum.ErrNodeLost) && ctx.Err() == nil {
					c.log.Warn("signal a group", "node", id, "pgid", req.Pgid, "err", err)
				}
				return
			}
			mu.Lock()
			sum.add(*res)
			mu.Unlock()
		})
	}
	wg.Wait()
	return sum
}

// onKillGroup signals the members on this node.
func (c *Calls) onKillGroup(ctx context.Context, _ unum.NodeID, req *groupReq) (*groupRes, error) {
	return c.signal(ctx, req, false, 0)
}

// direct says whether bodies are given a signal where they run, together with
// what they have forked there, and not by their deputies alone. What stops and
// continues keeps the deputies' order, so that neither overtakes the other;
// only to the caller's own node does a stop go at once.
func direct(sig unix.Signal, own bool) bool {
	switch sig {
	case unix.SIGCONT:
		return false
	case unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU:
		return own
	}
	return true
}

// signal gives every member on this node its signal: those born here, in their
// deputies too, and the bodies of others. If nobody of the group was born here
// the bodies have neither parents nor children in it here, and wait for their
// deputies; not so on the caller's own node. What is forked meanwhile is caught
// by looking again, for signals that no process can handle; a handler may fork
// what is not meant. The caller, a host PID, comes last.
func (c *Calls) signal(ctx context.Context, req *groupReq, own bool, self int) (*groupRes, error) {
	d := &delivery{c: c, req: req, sig: unix.Signal(req.Sig), own: own, self: self, seen: map[seenKey]bool{}}
	if err := c.once(ctx, d); err != nil {
		return nil, err
	}
	for _, m := range d.stops {
		err := c.cfg.Placed.SignalBody(ctx, m.task.Pid, d.sig, deputy.MarkGroup(queued(d.sig, &req.From), req.ID))
		if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unum.ErrNoProcess) {
			c.log.Warn("stop a member of a group", "pid", m.task.Pid, "pgid", m.task.Pgid, "err", err)
		}
	}
	return &d.res, nil
}
