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
		name string
		at   *place
		node string
		argv []string
		n    int // in one round
		base string
		gate *Gate
		ns   []int64
		rel  []float64 // of each round
		err  error
	}
	s, err := b.startSSH(ctx)
	if err != nil {
		return fmt.Errorf("sshd: %w", err)
	}
	defer s.close()
	const other = "/bin/true, on another node"
	var slower *Gate // how much slower ssh must be
	if world != nil {
		slower = atLeast(40)
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
		{name: other, at: world, node: "n2", argv: truth, n: 20, base: "/bin/true, native", gate: &Gate{Limit: 6, Aim: 4}},
		// The round that is not counted opens the connection that is kept.
		{name: "/bin/true, by ssh kept open", at: nat, argv: s.kept("/bin/true"), n: 2, base: other, gate: slower},
		{name: "/bin/true, by ssh cold", at: nat, argv: s.cold("/bin/true"), n: 1, base: other},
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
			of := "native"
			if v.base == other {
				row.times(v.ns, time.Millisecond, "ms")
				of = "the other node"
			}
			if base := byName[v.base]; base != nil && base.at != nil && base.err == nil {
				row.Ratio, row.Of = medianOf(ratios(v.rel, base.rel)), of
			}
		}
		b.rep.add(row)
	}
	return nil
}

// times fills in a row from samples.
func (r *Row) times(ns []int64, unit time.Duration, name string) {
	in := func(d time.Duration) float64 { return float64(d) / float64(unit) }
	r.Value, r.P10, r.P90 = in(median(ns)), in(quantile(ns, 0.1)), in(quantile(ns, 0.9))
	r.Unit, r.Samples = name, len(ns)
}
