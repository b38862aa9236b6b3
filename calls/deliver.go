package calls

import (
	"context"
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"unum"
	"unum/deputy"
	"unum/sys"
)

// parentsFirst orders a group so that nobody comes before its parent: a shell
// has its signal before it can learn that its children died of theirs.
func (g group) parentsFirst() group {
	parent := map[int]int{}
	for _, m := range g {
		parent[m.task.Tgid] = m.task.Ppid
	}
	depth := func(host int) (n int) {
		for ok := true; ok && n <= len(g); n++ {
			host, ok = parent[host]
		}
		return n
	}
	out := slices.Clone(g)
	slices.SortStableFunc(out, func(a, b member) int { return depth(a.task.Tgid) - depth(b.task.Tgid) })
	return out
}

type seenKey struct {
	host  int
	start uint64
}

// delivery is one signal to a group on its way to the members on this node.
type delivery struct {
	c    *Calls
	req  *groupReq
	sig  unix.Signal
	own  bool // this is the caller's node
	self int  // host PID of the caller, if it is here

	res    groupRes
	seen   map[seenKey]bool
	bodies []unum.Pid // claimed
	stops  []member   // placed elsewhere, to be stopped past their deputies
	last   *member    // the caller
	given  bool
}

// once makes a delivery, unless the daemon before this one has made it.
func (c *Calls) once(ctx context.Context, d *delivery) error {
	c.groupMu.Lock()
	defer c.groupMu.Unlock()
	if c.cfg.Placed.GroupKnown(d.req.ID) {
		d.res = groupRes{Found: 1, Sent: 1, Bodies: 1}
		return nil
	}
	done := c.lastGroup == d.req.ID // its agent has, or is at it
	for {
		g, err := c.members(d.req.Pgid)
		if err != nil {
			return err
		}
		to := d.choose(g.parentsFirst())
		if !done {
			err = d.give(ctx, to)
		}
		if err != nil {
			return err
		}
		if len(to) == 0 || d.sig != unix.SIGKILL && d.sig != unix.SIGSTOP {
			break
		}
	}
	if d.last != nil && !done {
		if err := d.give(ctx, []member{*d.last}); err != nil {
			return err
		}
	}
	c.cfg.Placed.GroupDone(d.req.ID, d.bodies, d.given || done)
	if done {
		d.res = groupRes{Found: 1, Sent: 1, Bodies: 1}
	}
	return nil
}

// choose counts the members that were not seen yet, and returns those that are
// to be given the signal now.
func (d *delivery) choose(g group) (to []member) {
	born := slices.ContainsFunc(g, func(m member) bool { return m.role == native || m.role == away })
	bodies := direct(d.sig, d.own) && (d.own || born)
	for _, m := range g {
		k := seenKey{m.task.Tgid, m.task.Start}
		// Who only asks is told by the deputy: a body may live a moment longer.
		if d.seen[k] || m.role == stub || m.role == body && (!bodies || d.sig == 0) {
			continue
		}
		d.seen[k] = true
		if d.req.Pgid == 0 && (m.task.Tgid == d.self || m.task.Pid == d.req.From.Pid) {
			continue // kill(-1) spares its caller
		}
		d.res.Found++
		if !d.req.From.mayKill(m.task, d.sig) {
			continue
		}
		d.res.Sent++
		if d.sig == 0 {
			continue
		}
		if m.role == body {
			d.res.Bodies++
			if !d.c.cfg.Placed.ClaimGroup(d.req.ID, m.task.Pid) {
				continue // its deputy was faster
			}
			d.bodies = append(d.bodies, m.task.Pid)
		}
		switch {
		case m.role == away && d.sig == unix.SIGSTOP:
			d.stops = append(d.stops, m) // it cannot be blocked, so a deputy cannot hand it on
		case m.task.Tgid == d.self:
			d.last = &m
		default:
			to = append(to, m)
		}
	}
	return to
}

// giveAtOnce is how many members one program of the agent serves.
const giveAtOnce = 256

// give lets the agent queue the signal to all of them in one go.
func (d *delivery) give(ctx context.Context, to []member) error {
	info := queued(d.sig, &d.req.From)
	for part := range slices.Chunk(to, giveAtOnce) {
		d.given = true
		p := &deputy.Program{Tag: d.req.ID}
		plain := p.Bytes(info[:])
		marked := p.Bytes(deputy.MarkGroup(info, d.req.ID)[:])
		for _, m := range part {
			at := plain
			if m.role == away {
				at = marked
			}
			p.Do(unix.SYS_RT_SIGQUEUEINFO, uint64(m.task.Pid), uint64(d.sig), at, 0, 0, d.c.cfg.Cookie)
		}
		res, err := d.c.cfg.Agent.Run(ctx, p)
		if err != nil {
			return err
		}
		for i, m := range part {
			if i < len(res.Rets) {
				d.mend(&m, res.Rets[i])
			}
			if m.role == away && d.sig == unix.SIGCONT {
				d.c.cfg.Placed.Continued(m.task.Pid, deputy.MarkGroup(info, d.req.ID))
			}
		}
	}
	return nil
}

// mend deals with what the agent could not do.
func (d *delivery) mend(m *member, ret int64) {
	err := error(unix.Errno(-ret))
	switch {
	case ret >= 0:
		return
	case errors.Is(err, unix.EAGAIN):
		err = bare(m.task, d.sig)
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		d.c.log.Warn("signal a member of a group", "pid", m.task.Pid, "pgid", m.task.Pgid, "err", err)
	}
}

// bare sends a standard signal without details, which needs no room in the
// user's queue.
func bare(t *sys.Task, sig unix.Signal) error {
	fd, err := sys.PidfdOpen(t.Tgid)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return sys.PidfdSendSignal(fd, sig, nil)
}
