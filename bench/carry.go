package bench

import (
	"context"
	"time"

	"unum/bench/probe"
)

// carry measures what a placed program pays for what it has open at home,
// beside the same program natively.
func (b *bench) carry(ctx context.Context) error {
	const section = "carried descriptors, on another node"
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
	bytes := b.pick(512, 128) << 20
	for _, m := range []struct {
		name   string
		q      probe.Request
		rounds int
		mbs    bool
	}{
		{"pipe through a placed stage", probe.Request{Op: probe.OpPipe, N: bytes}, 3, true},
		{"pipe there and back, a byte", probe.Request{Op: probe.OpPing, N: b.pick(2000, 500)}, 3, false},
		{"key echoed in raw mode", probe.Request{Op: probe.OpKey, N: b.pick(1000, 300)}, 3, false},
		{"4 KiB written to a shared log", probe.Request{Op: probe.OpLog, N: b.pick(2000, 500), Dir: b.dir}, 3, false},
	} {
		var got [2][]int64
		var errs [2]error
		for range m.rounds {
			for i, at := range []*place{nat, world} {
				if at == nil || errs[i] != nil {
					continue
				}
				q := m.q
				if at == world {
					q.Env = []string{"UNUM_NODE=n2"}
				}
				r, err := at.do(ctx, 2*time.Minute, q)
				errs[i] = err
				got[i] = append(got[i], r.NS...)
			}
		}
		var natural Row
		for i, where := range []string{"native", "placed"} {
			if i == 1 && world == nil {
				continue
			}
			row := Row{Section: section, Name: m.name + ", " + where}
			switch {
			case errs[i] != nil:
				row.Err = errs[i].Error()
			case m.mbs:
				row.Value, row.Unit, row.Samples = float64(bytes)/1e6/median(got[i]).Seconds(), "MB/s", len(got[i])
			default:
				row.times(got[i], time.Microsecond, "us")
			}
			if i == 0 {
				natural = row
			} else if natural.Value != 0 && row.Err == "" {
				row.Ratio, row.Of = row.Value/natural.Value, "native"
			}
			b.rep.add(row)
		}
	}
	return nil
}
