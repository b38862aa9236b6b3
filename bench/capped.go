package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"unum/world/cgroup"
)

// capCPUs is the share of a processor that a node, and the native run, may use.
const capCPUs = 0.3

// capped builds xz natively under a cap, on one node and on three nodes under
// the same cap for each.
func (b *bench) capped(ctx context.Context) error {
	const section = "make -j6 of xz-utils under --cpus 0.3"
	type variant struct {
		name      string
		nodes     int // 0: native
		configure []int64
		make      []int64
		err       error
	}
	vs := []*variant{{name: "native"}, {name: "one node", nodes: 1}, {name: "three nodes", nodes: 3}}
	if b.opt.Native {
		vs = vs[:1]
	}
	for range b.pick(2, 1) {
		for _, v := range vs {
			if v.err != nil {
				continue
			}
			c, m, err := b.cappedBuild(ctx, v.nodes)
			v.err = err
			if err == nil {
				b.logf("%s: configure %.1f s, make %.1f s", v.name, c.Seconds(), m.Seconds())
				v.configure, v.make = append(v.configure, int64(c)), append(v.make, int64(m))
			}
		}
	}
	row := func(name string, v *variant, ns []int64) Row {
		r := Row{Section: section, Name: name + v.name}
		if v.err != nil {
			r.Err = v.err.Error()
			return r
		}
		r.times(ns, time.Second, "s")
		return r
	}
	for i, v := range vs {
		r := row("make -j6, ", v, v.make)
		switch {
		case i == 1:
			r.Gate = atMost(1.15)
			if vs[0].err == nil && v.err == nil {
				r.Ratio, r.Of = float64(median(v.make))/float64(median(vs[0].make)), "native"
			}
		case i == 2:
			r.Gate = atLeast(2.2)
			if vs[1].err == nil && v.err == nil {
				r.Ratio, r.Of = float64(median(vs[1].make))/float64(median(v.make)), "faster than one"
			}
		}
		b.rep.add(r)
	}
	if b.opt.Quick {
		return nil
	}
	for _, v := range vs {
		r := row("configure, ", v, v.configure)
		if v.nodes > 0 && v.err == nil && vs[0].err == nil {
			r.Ratio, r.Of = float64(median(v.configure))/float64(median(vs[0].configure)), "native"
		}
		b.rep.add(r)
	}
	return nil
}

// cappedBuild builds once, in a fresh tree at the same path. A quick run
// configures without a cap and builds a part.
func (b *bench) cappedBuild(ctx context.Context, nodes int) (configure, mk time.Duration, err error) {
	dir := filepath.Join(b.dir, "xz")
	if err := b.unpack(ctx, dir); err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(dir)
	args, mkdir := []string{"/usr/bin/make", "-s", "-j6"}, dir
	if b.opt.Quick {
		nat, err := b.native(ctx)
		if err != nil {
			return 0, 0, err
		}
		_, err = b.timed(ctx, nat, dir, "./configure", "-q", "--disable-nls")
		nat.close()
		if err != nil {
			return 0, 0, err
		}
		args, mkdir = append(args, someObjects...), filepath.Join(dir, "src", "liblzma")
	}
	at, err := b.cappedPlace(ctx, nodes)
	if err != nil {
		return 0, 0, err
	}
	defer at.release()
	if !b.opt.Quick {
		if configure, err = b.timed(ctx, at.place, dir, "./configure", "-q", "--disable-nls"); err != nil {
			return 0, 0, err
		}
	}
	mk, err = b.timed(ctx, at.place, mkdir, args...)
	return configure, mk, err
}

// cappedAt is a place and the group that caps it, if that is ours.
type cappedAt struct {
	*place
	group *cgroup.Group
}

func (b *bench) cappedPlace(ctx context.Context, nodes int) (*cappedAt, error) {
	if nodes > 0 {
		p, err := b.play(ctx, nodes, capCPUs)
		return &cappedAt{place: p}, err
	}
	p, err := b.native(ctx)
	if err != nil {
		return nil, err
	}
	g, err := cgroup.Create(fmt.Sprintf("unum-bench-%d", os.Getpid()), capCPUs)
	if err == nil {
		err = g.Enrol(p.cmd.Process.Pid)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return &cappedAt{place: p, group: g}, nil
}

func (c *cappedAt) release() {
	c.place.close()
	if c.group != nil {
		c.group.Remove(context.Background())
	}
}
