package node

import (
	"context"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"unum"
	"unum/calls"
	"unum/deputy"
	"unum/sched"
	"unum/sys"
)

// newCalls makes what answers the trapped calls besides exec.
func newCalls(d *Daemon, agent *deputy.Stub) (*calls.Calls, error) {
	return calls.New(calls.Config{
		Node: d.cfg.Node, Range: unum.RangeOf(d.cfg.Index), Cookie: d.cookie, Log: d.log,
		Registry: d.stubs, Agent: agent, World: d.world, Placed: placements{d},
		Peer: d.peer, NodeOf: d.nodeOf, Others: d.others,
	})
}

// nodeOf returns the node with an index, unless it is gone.
func (d *Daemon) nodeOf(i unum.NodeIndex) (unum.NodeID, bool) {
	for _, n := range d.members.View().Nodes {
		if n.Index == i && n.State != unum.Down && n.State != unum.Left {
			return n.ID, true
		}
	}
	return "", false
}

// others lists the nodes that are there besides this one.
func (d *Daemon) others() (out []unum.NodeID) {
	for _, n := range d.members.View().Nodes {
		if n.ID != d.cfg.Node && n.State != unum.Down && n.State != unum.Left {
			out = append(out, n.ID)
		}
	}
	return out
}

// account notes what a body used, for whoever waits for its deputy.
func (d *Daemon) account(_, child int, u unum.Usage) {
	if c := d.calls.calls; c != nil {
		c.Account(child, u)
	}
}

// reaped returns what the children of a body used on further nodes.
func (d *Daemon) reaped(host int) unum.Usage {
	if c := d.calls.calls; c != nil {
		return c.Reaped(host)
	}
	return unum.Usage{}
}

// commands remembers as what the scheduler placed the latest processes: between
// one and two generations of them.
type commands struct {
	mu        sync.Mutex
	last, old map[unum.Pid]string
}

// generation is many more than a node starts while one of them asks for what
// must be at home, which is soon after its start.
const generation = 1024

func (c *commands) note(pid unum.Pid, command string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.last) >= generation {
		c.last, c.old = c.old, c.last
		clear(c.last)
	}
	if c.last == nil {
		c.last = map[unum.Pid]string{}
	}
	c.last[pid] = command
}

func (c *commands) of(pid unum.Pid) (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.last[pid]
	if !ok {
		s, ok = c.old[pid]
	}
	return s, ok
}

// place asks the scheduler, and remembers what is placed elsewhere.
func (p *dispatcher) place(r sched.Request) sched.Decision {
	dec := p.d.place(r)
	if dec.Err == nil && dec.Node != p.d.cfg.Node {
		p.commands.note(r.Pid, sched.Command(r.Path, r.Argv))
	}
	return dec
}

// placements is rexec as calls knows it.
type placements struct{ d *Daemon }

func (p placements) Where(pid unum.Pid) (unum.NodeID, bool) { return p.d.rexec.Where(pid) }
func (p placements) Home(pid unum.Pid) (unum.NodeID, bool)  { return p.d.rexec.Guests.Home(pid) }
func (p placements) Bodies() map[unum.Pid]int               { return p.d.rexec.Guests.HostPids() }
func (p placements) Hosts() bool                            { return p.d.rexec.Guests.Hosts() }
func (p placements) PlacedGroup(pgid unum.Pid) bool         { return p.d.rexec.PlacedGroup(pgid) }
func (p placements) Note(pid unum.Pid, text string)         { p.d.rexec.Note(pid, text) }

func (p placements) Nursed() bool { return p.d.rexec.Guests.Nursed() }

func (p placements) Adopter(ctx context.Context, host int) (unum.NodeID, bool) {
	return p.d.rexec.Guests.Adopter(ctx, host)
}

func (p placements) Subreaper(host int, on bool) error { return p.d.rexec.Subreaper(host, on) }

func (p placements) ClaimGroup(id uint64, pid unum.Pid) bool {
	return p.d.rexec.Guests.ClaimGroup(id, pid)
}

func (p placements) GroupDone(id uint64, bodies []unum.Pid, given bool) {
	p.d.rexec.Guests.GroupDone(id, bodies, given)
}

func (p placements) GroupKnown(id uint64) bool { return p.d.rexec.Guests.GroupKnown(id) }

func (p placements) SignalBody(ctx context.Context, pid unum.Pid, sig unix.Signal, info *sys.Siginfo) error {
	return p.d.rexec.SignalBody(ctx, pid, sig, info)
}

func (p placements) Continued(pid unum.Pid, info *sys.Siginfo) { p.d.rexec.Continued(pid, info) }

func (p placements) HandedOn(ctx context.Context, pid unum.Pid, sig unix.Signal) {
	p.d.rexec.HandedOn(ctx, pid, sig)
}

func (p placements) InDeputy(ctx context.Context, pid unum.Pid, prog *deputy.Program) (*deputy.Result, error) {
	return p.d.rexec.InDeputy(ctx, pid, prog)
}

func (p placements) AskDeputy(ctx context.Context, pid unum.Pid, prog *deputy.Program, at uint64, out []byte) (*deputy.Result, error) {
	return p.d.rexec.AskDeputy(ctx, pid, prog, at, out)
}

func (p placements) Origin(ino uint64) (calls.Origin, bool) {
	pl, nums, ok := p.d.carrier.pipes.Origin(ino)
	return calls.Origin{Home: pl.Home, Pid: pl.Pid, Op: pl.ID, Nums: nums}, ok
}

func (p placements) DeputyFile(pid unum.Pid, op uint64, num int) (*os.File, error) {
	return p.d.rexec.DeputyFile(pid, op, num)
}

func (p placements) EnsureGroup(ctx context.Context, sid, pgid unum.Pid) error {
	return p.d.rexec.Guests.EnsureGroup(ctx, sid, pgid)
}

func (p placements) SyncTerminal(ctx context.Context, pgid unum.Pid) {
	p.d.rexec.SyncTerminal(ctx, pgid)
}

// Forbid keeps the command of a placed process at home from now on.
func (p placements) Forbid(pid unum.Pid, reason string) {
	command, ok := p.d.calls.commands.of(pid)
	if !ok {
		return
	}
	p.d.schedMu.Lock()
	defer p.d.schedMu.Unlock()
	p.d.sched.Forbid(command, fmt.Sprintf("%s: %s", command, reason))
	p.d.log.Info("a command stays home from now on", "command", command, "reason", reason)
}
