package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"unum"
	"unum/ctl"
	"unum/sys"
)

// clockTick is the unit of times in /proc/PID/stat: USER_HZ, 100 on every
// architecture that unum runs on.
const clockTick = 10 * time.Millisecond

// Ps lists the processes of all nodes. A node that does not answer within a
// second is left out.
func (b backend) Ps(ctx context.Context, c ctl.Caller) ([]ctl.Proc, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	nodes := b.d.members.View().Nodes
	parts := make([][]ctl.Proc, len(nodes))
	b.d.each(ctx, func(ctx context.Context, i int, p unum.Peer) {
		raw, err := p.Call(ctx, "ctl.ps", nil)
		if err == nil {
			err = msgpack.Unmarshal(raw, &parts[i])
		}
		if err != nil {
			b.d.log.Warn("ps", "peer", p.Node(), "err", err)
		}
	})
	var out []ctl.Proc
	for _, p := range parts {
		out = append(out, p...)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Pid < out[j].Pid })
	return out, nil
}

// each calls f for every node that is up, at once, and waits.
func (d *Daemon) each(ctx context.Context, f func(ctx context.Context, i int, p unum.Peer)) {
	done := make(chan struct{})
	n := 0
	for i, node := range d.members.View().Nodes {
		if node.State == unum.Down || node.State == unum.Left {
			continue
		}
		n++
		go func() {
			f(ctx, i, d.wire.Peer(node.ID))
			done <- struct{}{}
		}()
	}
	for range n {
		<-done
	}
}

func (d *Daemon) handlePs(context.Context, unum.NodeID, []byte) ([]byte, error) {
	ps, err := d.ps()
	if err != nil {
		return nil, err
	}
	return msgpack.Marshal(ps)
}

// ps lists the processes that run here: natives and bodies, without stubs.
func (d *Daemon) ps() ([]ctl.Proc, error) {
	pids, err := d.world.HostPids()
	if err != nil {
		return nil, err
	}
	born := d.births()
	var boot unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot)
	var out []ctl.Proc
	for _, host := range pids {
		if host == d.world.Pid1HostPid() || d.stubs.Find(host) != nil {
			continue
		}
		t, err := sys.ReadTask(host)
		if err != nil || t.Tgid != host {
			continue // gone meanwhile
		}
		p := ctl.Proc{Pid: t.Pid, Uid: t.Uid[1], Node: d.cfg.Node, Home: born(t.Pid), State: string(t.State)}
		if t.Ppid > 0 {
			p.Ppid, _ = sys.WorldPid(t.Ppid)
		}
		age := time.Duration(boot.Nano()) - time.Duration(t.Start)*clockTick
		p.Started = time.Now().Add(-age)
		p.Time = time.Duration(t.Utime+t.Stime) * clockTick
		if age > 0 {
			p.CPU = 100 * float64(p.Time) / float64(age)
		}
		p.RSS = rss(host)
		p.Command = cmdline(host, t.Comm)
		out = append(out, p)
	}
	return out, nil
}

// births returns a function that says on which node a process was born: the one
// whose range its number is of. A number that was born past a range's end, or
// on a node that is no member any more, counts as this node's.
func (d *Daemon) births() func(unum.Pid) unum.NodeID {
	nodes := map[unum.NodeIndex]unum.NodeID{}
	for _, n := range d.members.View().Nodes {
		nodes[n.Index] = n.ID
	}
	return func(pid unum.Pid) unum.NodeID {
		if i, ok := unum.IndexOf(pid); ok && nodes[i] != "" {
			return nodes[i]
		}
		return d.cfg.Node
	}
}

func rss(host int) uint64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(host) + "/statm")
	if err != nil {
		return 0
	}
	if f := strings.Fields(string(b)); len(f) > 1 {
		n, _ := strconv.ParseUint(f[1], 10, 64)
		return n * uint64(os.Getpagesize())
	}
	return 0
}

func cmdline(host int, comm string) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(host) + "/cmdline")
	if err != nil || len(b) == 0 {
		return "[" + comm + "]"
	}
	return strings.ReplaceAll(strings.TrimRight(string(b), "\x00"), "\x00", " ")
}

// whyPart is what one node knows of a process.
type whyPart struct {
	Runs    bool        // it, and no stub of it, is here
	Next    unum.NodeID // this node placed it there
	Command string
	Reasons []string
}

// Why asks all nodes: the reasons of a chain of placements lie along its way.
func (b backend) Why(ctx context.Context, c ctl.Caller, pid unum.Pid) (*ctl.Why, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	nodes := b.d.members.View().Nodes
	found := make([]*whyPart, len(nodes))
	b.d.each(ctx, func(ctx context.Context, i int, p unum.Peer) {
		raw, err := p.Call(ctx, "ctl.why", []byte(strconv.Itoa(int(pid))))
		if err != nil {
			return
		}
		w := &whyPart{}
		if msgpack.Unmarshal(raw, w) == nil {
			found[i] = w
		}
	})
	parts := map[unum.NodeID]*whyPart{}
	for i, w := range found {
		if w != nil {
			parts[nodes[i].ID] = w
		}
	}
	if len(parts) == 0 {
		return nil, &unum.Error{Op: "why", Pid: pid, Err: unum.ErrNoProcess}
	}
	return chain(pid, b.d.births()(pid), parts), nil
}

// chain follows a process from where it was born to where it runs.
func chain(pid unum.Pid, home unum.NodeID, parts map[unum.NodeID]*whyPart) *ctl.Why {
	out := &ctl.Why{Pid: pid, Home: home, Node: home}
	for at := home; parts[at] != nil; {
		w := parts[at]
		out.Node = at
		out.Reasons = append(out.Reasons, w.Reasons...)
		delete(parts, at)
		if w.Runs {
			out.Command = w.Command
		}
		if at = w.Next; w.Runs || at == "" {
			break
		}
		out.Node = at // it may not have answered
	}
	for id, w := range parts { // its home is gone, or the placement is under way
		if w.Runs {
			out.Node, out.Command = id, w.Command
			out.Reasons = append(out.Reasons, w.Reasons...)
		}
	}
	return out
}

func (d *Daemon) handleWhy(_ context.Context, _ unum.NodeID, req []byte) ([]byte, error) {
	n, err := strconv.Atoi(string(req))
	if err != nil {
		return nil, err
	}
	pid := unum.Pid(n)
	w := whyPart{}
	host, err := d.world.ToHost(pid)
	if err != nil {
		host = 0
	}
	w.Runs = err == nil && d.stubs.Find(host) == nil
	w.Next, _ = d.rexec.Where(pid)
	if w.Runs {
		t, err := sys.ReadTask(host)
		if err != nil {
			return nil, unum.ErrNoProcess
		}
		w.Command = cmdline(host, t.Comm)
	}
	if w.Runs || w.Next != "" {
		if why := d.rexec.Why(pid, host); why != "" {
			w.Reasons = append(w.Reasons, why)
		} else if w.Runs && d.births()(pid) == d.cfg.Node {
			w.Reasons = append(w.Reasons, fmt.Sprintf("runs on %s: it was born here, and nothing asked for another place", d.cfg.Node))
		}
	} else if why := d.rexec.Why(pid, 0); why != "" { // it has ended
		w.Reasons = append(w.Reasons, why)
	}
	if !w.Runs && w.Next == "" && len(w.Reasons) == 0 {
		return nil, unum.ErrNoProcess
	}
	return msgpack.Marshal(&w)
}

// Logs asks the other nodes.
func (b backend) Logs(ctx context.Context, c ctl.Caller, pid unum.Pid, offset int64) (*ctl.LogChunk, error) {
	req, err := msgpack.Marshal(&logsReq{c, pid, offset})
	if err != nil {
		return nil, err
	}
	for _, n := range b.d.members.View().Nodes {
		if n.ID == b.d.cfg.Node || n.State == unum.Down || n.State == unum.Left {
			continue
		}
		raw, err := b.d.wire.Peer(n.ID).Call(ctx, "ctl.logs", req)
		if errors.Is(err, unum.ErrNoProcess) {
			continue
		}
		if err != nil {
			return nil, err
		}
		chunk := &ctl.LogChunk{}
		return chunk, msgpack.Unmarshal(raw, chunk)
	}
	return nil, &unum.Error{Op: "logs", Pid: pid, Err: unum.ErrNoProcess}
}

type logsReq struct {
	Caller ctl.Caller
	Pid    unum.Pid
	Offset int64
}

func (d *Daemon) handleLogs(_ context.Context, _ unum.NodeID, raw []byte) ([]byte, error) {
	req := &logsReq{}
	if err := msgpack.Unmarshal(raw, req); err != nil {
		return nil, err
	}
	chunk, err := d.logs.Read(req.Caller, req.Pid, req.Offset)
	if err != nil {
		return nil, err
	}
	return msgpack.Marshal(chunk)
}
