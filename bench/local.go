package bench

import (
	"context"
	"encoding/csv"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"unum/bench/probe"
)

const localSection = "what is not placed, in the world beside outside"

// local measures the cost of being in the world for what stays home: a byte
// read, redis under its own benchmark, a build.
func (b *bench) local(ctx context.Context) error {
	for _, f := range []func(context.Context, *place, *place) error{b.readRow, b.redisRows, b.buildRow} {
		if err := b.inBoth(ctx, f); err != nil {
			b.rep.add(Row{Section: localSection, Name: "-", Err: err.Error()})
			b.logf("local: %v", err)
		}
	}
	return nil
}

// inBoth gives f a native place and one in a fresh play of one node, where
// nothing else can disturb.
func (b *bench) inBoth(ctx context.Context, f func(context.Context, *place, *place) error) error {
	nat, err := b.native(ctx)
	if err != nil {
		return err
	}
	defer nat.close()
	world := nat // without unum: native beside native shows the noise
	if !b.opt.Native {
		if world, err = b.play(ctx, 1, 0); err != nil {
			return err
		}
		defer world.close()
	}
	return f(ctx, nat, world)
}

func (b *bench) readRow(ctx context.Context, nat, world *place) error {
	var in, out []float64
	for range b.pick(21, 9) {
		for i, at := range []*place{nat, world} {
			r, err := at.do(ctx, time.Minute, probe.Request{Op: probe.OpRead, N: 20})
			if err != nil {
				return err
			}
			v := float64(median(r.NS))
			if i == 0 {
				out = append(out, v)
			} else {
				in = append(in, v)
			}
		}
	}
	b.rep.add(Row{Section: localSection, Name: "read of a byte, outside", Value: medianOf(out), Unit: "ns", Samples: len(out)})
	b.rep.add(Row{Section: localSection, Name: "read of a byte, in the world", Value: medianOf(in), Unit: "ns", Samples: len(in), Ratio: medianOf(in) / medianOf(out), Of: "outside"})
	var more []float64
	for i := range in {
		more = append(more, in[i]-out[i])
	}
	b.rep.add(Row{Section: localSection, Name: "read of a byte, more", Value: medianOf(more), Unit: "ns", Samples: len(more), Gate: &Gate{Limit: 80, Value: true}})
	return nil
}

// redisRows runs a server and its benchmark side by side at each place.
func (b *bench) redisRows(ctx context.Context, nat, world *place) error {
	const server, client = "/usr/bin/redis-server", "/usr/bin/redis-benchmark"
	if err := install(ctx, map[string]string{server: "redis-server", client: "redis-tools"}); err != nil {
		return err
	}
	type side struct {
		at   *place
		port int
		rps  map[string][]float64
	}
	var sides []*side
	for _, at := range []*place{nat, world} {
		port, err := freePort()
		if err != nil {
			return err
		}
		s := &side{at: at, port: port, rps: map[string][]float64{}}
		r, err := at.do(ctx, time.Minute, probe.Request{Op: probe.OpStart, Dir: b.dir, Env: []string{"UNUM_NODE=here"}, Argv: []string{
			server, "--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"}})
		if err != nil {
			return err
		}
		defer at.do(ctx, time.Minute, probe.Request{Op: probe.OpStop, N: r.N})
		// redis-benchmark waits for ever on a server that does not listen yet.
		ready := fmt.Sprintf("until redis-cli -p %d ping; do sleep 0.05; done", port)
		if _, err := at.do(ctx, time.Minute, probe.Request{Op: probe.OpRun, Dir: b.dir, Env: []string{"UNUM_NODE=here"}, Argv: []string{"/bin/sh", "-c", ready}}); err != nil {
			return err
		}
		sides = append(sides, s)
	}
	tests := []string{"SET", "GET"}
	// Many short runs side by side: what else the machine does comes and goes
	// within seconds, and is more than what is measured. One run differs from the
	// next by 15 % on a virtual machine, so the median of these is good to 1.4 %.
	const requests = 16000
	for round := -1; round < b.pick(181, 15); round++ {
		for i := range sides {
			s := sides[(i+round+2)%2] // who goes first changes
			r, err := s.at.do(ctx, time.Minute, probe.Request{Op: probe.OpRun, Dir: b.dir, Env: []string{"UNUM_NODE=here"}, Argv: []string{
				client, "-p", strconv.Itoa(s.port), "-t", strings.ToLower(strings.Join(tests, ",")), "-n", strconv.Itoa(requests), "-c", "20", "--csv"}})
			if err != nil {
				return err
			}
			if r.Status != 0 {
				return fmt.Errorf("redis-benchmark: status %d: %s", r.Status, r.Out)
			}
			rps, err := redisCSV(r.Out)
			if err != nil {
				return err
			}
			if round < 0 {
				continue
			}
			for t, v := range rps {
				s.rps[t] = append(s.rps[t], v)
			}
		}
	}
	for _, t := range tests {
		out, in := sides[0].rps[t], sides[1].rps[t]
		b.rep.add(Row{Section: localSection, Name: "redis " + t + ", outside", Value: medianOf(out), Unit: "1/s", Samples: len(out)})
		b.rep.add(Row{Section: localSection, Name: "redis " + t + ", in the world", Value: medianOf(in), Unit: "1/s", Samples: len(in),
			Ratio: medianOf(ratios(out, in)), Of: "the time outside", Gate: atMost(1.03)})
	}
	return nil
}

// redisCSV returns requests a second by test.
func redisCSV(text string) (map[string]float64, error) {
	rows, err := csv.NewReader(strings.NewReader(text)).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("redis-benchmark: %w in %q", err, text)
	}
	m := map[string]float64{}
	for _, row := range rows {
		if v, err := strconv.ParseFloat(row[1], 64); err == nil {
			m[row[0]] = v
		}
	}
	if len(m) == 0 {
		return nil, fmt.Errorf("redis-benchmark said nothing: %q", text)
	}
	return m, nil
}

// buildRow compiles a part of liblzma again and again.
func (b *bench) buildRow(ctx context.Context, nat, world *place) error {
	dir, err := b.configured(ctx, nat)
	if err != nil {
		return err
	}
	dir = filepath.Join(dir, "src", "liblzma")
	argv := append([]string{"/usr/bin/make", "-s", "-j2"}, someObjects...)
	var in, out []float64
	for round := -1; round < b.pick(31, 3); round++ {
		for i := range 2 {
			at := []*place{nat, world}[(i+round+2)%2]
			if _, err := at.do(ctx, time.Minute, probe.Request{Op: probe.OpRun, Dir: dir, Argv: append([]string{"/bin/rm", "-f"}, someObjects...)}); err != nil {
				return err
			}
			r, err := at.do(ctx, 3*time.Minute, probe.Request{Op: probe.OpRun, Dir: dir, Env: []string{"UNUM_NODE=here"}, Argv: argv})
			if err != nil {
				return err
			}
			if r.Status != 0 {
				return fmt.Errorf("make: status %d: %s", r.Status, r.Out)
			}
			if round < 0 {
				continue
			}
			if s := time.Duration(r.NS[0]).Seconds(); at == nat && (i+round+2)%2 == 0 {
				out = append(out, s)
			} else {
				in = append(in, s)
			}
		}
	}
	b.rep.add(Row{Section: localSection, Name: "make -j2, outside", Value: medianOf(out), Unit: "s", Samples: len(out)})
	b.rep.add(Row{Section: localSection, Name: "make -j2, in the world", Value: medianOf(in), Unit: "s", Samples: len(in),
		Ratio: medianOf(ratios(in, out)), Of: "outside", Gate: atMost(1.03)})
	return nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
