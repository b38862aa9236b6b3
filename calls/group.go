package calls

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"unum"
	"unum/seccomp"
	"unum/sys"
)

// groupReq is a signal for the members of a process group, or of everybody, on
// the nodes where they were born.
type groupReq struct {
	From Sender
	Pgid unum.Pid // 0: everybody
	Sig  int
	Skip []unum.Pid // have had it already, where their bodies run
}

// groupRes counts. A process that may not be signalled is found, not sent.
type groupRes struct{ Found, Sent int }

func (r *groupRes) add(o groupRes) { r.Found += o.Found; r.Sent += o.Sent }

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
		if m.role == body || m.role == stub || m.role == away && sig == unix.SIGSTOP {
			return false
		}
	}
	return true
}

// killGroup answers kill(0), kill(-pgid) and kill(-1); pgid is 0, the group or
// 1. Each member gets the signal once, by the node where it was born; only
// bodies on the caller's node get it at once, so that a process that signals
// its own group has the signal before kill returns.
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
	g, err := c.members(pgid)
	if err != nil {
		n.Errno(unix.EPERM)
		return
	}
	req := &groupReq{From: s, Pgid: pgid, Sig: int(sig)}
	if sig != unix.SIGCONT { // home's terminal comes first: by the deputy
		for _, m := range g {
			if m.role == body {
				req.Skip = append(req.Skip, m.task.Pid)
			}
		}
	}
	sum := c.ask(ctx, others, req)
	if ctx.Err() != nil {
		return
	}
	// The kernel also knows of zombies, which are not listed.
	if !all && g.plain(sig) && (sum.Sent == 0 && (sum.Found == 0 || len(g) > 0) || g.may(&s, sig)) {
		n.Continue()
		return
	}
	sum.add(c.signal(ctx, g, req, len(req.Skip) > 0, t.Tgid))
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
				res, err = call[groupRes](ctx, peer, "calls.killpg", req)
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

// onKillGroup signals the members that were born here.
func (c *Calls) onKillGroup(ctx context.Context, req *groupReq) (*groupRes, error) {
	g, err := c.members(req.Pgid)
	if err != nil {
		return nil, err
	}
	res := c.signal(ctx, g, req, false, 0)
	return &res, nil
}

// signal gives every member its signal: those born here, and the bodies if
// bodies is set. What is forked meanwhile is caught by looking again, for
// signals that no process can handle; a handler may fork what is not meant.
// The caller, a host PID, comes last.
func (c *Calls) signal(ctx context.Context, g group, req *groupReq, bodies bool, self int) (res groupRes) {
	sig := unix.Signal(req.Sig)
	skip := map[unum.Pid]bool{}
	if !bodies {
		for _, p := range req.Skip {
			skip[p] = true
		}
	}
	type key struct {
		host  int
		start uint64
	}
	seen := map[key]bool{}
	var last *member
	for {
		news := false
		for _, m := range g {
			k := key{m.task.Tgid, m.task.Start}
			if seen[k] || m.role == stub || m.role == body && !bodies {
				continue
			}
			seen[k] = true
			if req.Pgid == 0 && (m.task.Tgid == self || m.task.Pid == req.From.Pid) {
				continue // kill(-1) spares its caller
			}
			res.Found++
			if skip[m.task.Pid] {
				res.Sent++
				continue
			}
			if !req.From.mayKill(m.task, sig) {
				continue
			}
			res.Sent++
			if sig == 0 {
				continue
			}
			if m.task.Tgid == self {
				last = &m
				continue
			}
			news = true
			c.signalOne(ctx, &m, req)
		}
		if !news || sig != unix.SIGKILL && sig != unix.SIGSTOP {
			break
		}
		var err error
		if g, err = c.members(req.Pgid); err != nil {
			break
		}
	}
	if last != nil {
		c.signalOne(ctx, last, req)
	}
	return res
}

func (c *Calls) signalOne(ctx context.Context, m *member, req *groupReq) {
	sig := unix.Signal(req.Sig)
	info := queued(sig, &req.From)
	var err error
	if m.role == away && sig == unix.SIGSTOP {
		err = c.cfg.Placed.SignalBody(ctx, m.task.Pid, sig, info)
	} else {
		err = c.send(ctx, m.task, sig, info)
	}
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unum.ErrNoProcess) {
		c.log.Warn("signal a member of a group", "pid", m.task.Pid, "pgid", m.task.Pgid, "err", err)
	}
}
