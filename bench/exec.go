package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"unum/bench/probe"
)

// execs measures exec of a static no-op and of /bin/true: natively, in the
// world at home, on another node, and by ssh.
func (b *bench) execs(ctx context.Context) error {
	const section = "exec, from vfork to wait"
	nop := filepath.Join(b.dir, "noop")
	if err := writeNoop(nop); err != nil {
		return err
	}
	nat, err := b.native(ctx)
	if err != nil {
		return err
	}
	defer nat.close()
	var world *place
	if !b.opt.Native {
		if world, err = b.play(ctx, 3, 0); err != nil {
			return err
		}
		defer world.close()
	}
	type variant struct {
		name  string
		at    *place
		node  string
		argv  []string
		n     int // in one round
		base  string
		gate  *Gate
		limit time.Duration
		ns    []int64
		rel   []float64 // of each round
		err   error
	}
	truth := []string{"/bin/true"}
	vs := []*variant{
		{name: "no-op, native", at: nat, argv: []string{nop}, n: 100},
		{name: "no-op, at home", at: world, node: "here", argv: []string{nop}, n: 100, base: "no-op, native", gate: atMost(1.5)},
		{name: "no-op, at home by policy", at: world, node: "auto", argv: []string{nop}, n: 100, base: "no-op, native"},
		{name: "no-op, on another node", at: world, node: "n2", argv: []string{nop}, n: 20, base: "no-op, native"},
		{name: "/bin/true, native", at: nat, argv: truth, n: 50},
		{name: "/bin/true, at home", at: world, node: "here", argv: truth, n: 50, base: "/bin/true, native", gate: atMost(1.25)},
		{name: "/bin/true, at home by policy", at: world, node: "auto", argv: truth, n: 50, base: "/bin/true, native"},
		{name: "/bin/true, on another node", at: world, node: "n2", argv: truth, n: 20, base: "/bin/true, native", gate: &Gate{Limit: 6, Aim: 4}},
	}
	byName := map[string]*variant{}
	for _, v := range vs {
		byName[v.name] = v
	}
	rounds := b.pick(15, 5)
	for round := -1; round < rounds; round++ {
		for _, v := range vs {
			if v.at == nil || v.err != nil {
				continue
			}
			q := probe.Request{Op: probe.OpExec, Argv: v.argv, N: v.n}
			if v.node != "" {
				q.Env = []string{"UNUM_NODE=" + v.node}
			}
			r, err := v.at.do(ctx, time.Minute, q)
			if err != nil {
				v.err = err
				continue
			}
			if round < 0 {
				continue // warm-up
			}
			v.ns = append(v.ns, r.NS...)
			v.rel = append(v.rel, float64(median(r.NS)))
		}
	}
	for _, v := range vs {
		row := Row{Section: section, Name: v.name, Gate: v.gate}
		switch {
		case v.err != nil:
			row.Err = v.err.Error()
		case v.at == nil:
			continue
		default:
			row.times(v.ns, time.Microsecond, "us")
			if base := byName[v.base]; base != nil {
				row.Ratio, row.Of = medianOf(ratios(v.rel, base.rel)), "native"
			}
		}
		b.rep.add(row)
	}
	return b.sshRows(ctx, nat, section, byName["/bin/true, on another node"].ns)
}

// times fills in a row from samples.
func (r *Row) times(ns []int64, unit time.Duration, name string) {
	in := func(d time.Duration) float64 { return float64(d) / float64(unit) }
	r.Value, r.P10, r.P90 = in(median(ns)), in(quantile(ns, 0.1)), in(quantile(ns, 0.9))
	r.Unit, r.Samples = name, len(ns)
}

// sshRows adds the rows by ssh; other are the samples on another node.
func (b *bench) sshRows(ctx context.Context, nat *place, section string, other []int64) error {
	s, err := b.startSSH(ctx)
	if err != nil {
		return fmt.Errorf("sshd: %w", err)
	}
	defer s.close()
	for _, v := range []struct {
		name string
		argv []string
		n    int
	}{
		{"/bin/true, by ssh kept open", s.kept("/bin/true"), b.pick(20, 8)},
		{"/bin/true, by ssh cold", s.cold("/bin/true"), b.pick(8, 3)},
	} {
		row := Row{Section: section, Name: v.name}
		// The first opens the connection that is kept.
		_, err := nat.do(ctx, time.Minute, probe.Request{Op: probe.OpExec, Argv: v.argv, N: 1})
		if err == nil {
			var r probe.Result
			r, err = nat.do(ctx, 2*time.Minute, probe.Request{Op: probe.OpExec, Argv: v.argv, N: v.n})
			row.times(r.NS, time.Millisecond, "ms")
			if len(other) > 0 {
				row.Ratio, row.Of = float64(median(r.NS))/float64(median(other)), "the other node"
			}
		}
		if err != nil {
			row.Err = err.Error()
		}
		if v.name == "/bin/true, by ssh kept open" && len(other) > 0 {
			row.Gate = atLeast(40)
		}
		b.rep.add(row)
	}
	return nil
}
