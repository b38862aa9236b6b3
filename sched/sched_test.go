package sched

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"testing/quick"
	"time"

	"unum"
)

func view(cpus ...float64) View {
	v := View{Self: "n1"}
	for i, c := range cpus {
		v.Nodes = append(v.Nodes, unum.NodeInfo{
			ID: unum.NodeID(fmt.Sprintf("n%d", i+1)), Index: unum.NodeIndex(i), State: unum.Up,
			Load: unum.Load{CPUs: c, MemTotal: 8 << 30, MemFree: 4 << 30, At: 1},
		})
	}
	return v
}

// Whatever the number of nodes, their processors and the number of execs in
// one instant: nobody is more crowded than the least crowded by more than one
// task, as long as all candidates are compared.
func TestSpread(t *testing.T) {
	f := func(seed uint64) bool {
		r := rand.New(rand.NewPCG(seed, 1))
		n := 2 + r.IntN(exact)
		cpus := make([]float64, n)
		for i := range cpus {
			cpus[i] = []float64{0.3, 1, 2, 8}[r.IntN(4)]
		}
		s, v := New(Config{}), view(cpus...)
		s.Learn("/cc1", Outcome{CPU: time.Second})
		got := map[unum.NodeID]float64{}
		k := 1 + r.IntN(200)
		for i := range k {
			d := s.Place(int64(i), v, Request{Pid: unum.Pid(70000 + i), Path: "/cc1", Caller: "n1", Home: "n1"})
			got[d.Node]++
		}
		for _, a := range v.Nodes {
			for _, b := range v.Nodes {
				// Up to its processors home takes all; and b takes nothing from
				// a while a is not slowed down, or for the price of the hop.
				if high, low := got[a.ID]/a.Load.CPUs, (got[b.ID]+1.05)/b.Load.CPUs*1.01; high > 1+1e-9 && high > low+1/a.Load.CPUs {
					t.Logf("seed %d: %d execs on %v: %v", seed, k, cpus, got)
					return false
				}
			}
		}
		return true
	}
	if err := quick.Check(f, &quick.Config{MaxCount: 500}); err != nil {
		t.Error(err)
	}
}

// With many nodes, and all of them deciding at once from the same reports, no
// node gets more than a few times its share.
func TestHerd(t *testing.T) {
	const nodes, each = 32, 8
	cpus := make([]float64, nodes)
	for i := range cpus {
		cpus[i] = 2
	}
	v := view(cpus...)
	for i := range v.Nodes {
		v.Nodes[i].Load.Running = 4
	}
	v.Nodes[17].Load.Running = 0 // everybody sees one idle node
	got := map[unum.NodeID]int{}
	for i := range v.Nodes {
		s := New(Config{})
		s.rng += uint64(i) * 77
		s.Learn("/cc1", Outcome{CPU: time.Second})
		for j := range each {
			d := s.Place(0, v, Request{Pid: unum.Pid(70000 + j), Path: "/cc1", Caller: v.Nodes[i].ID, Home: v.Nodes[i].ID})
			got[d.Node]++
		}
	}
	for n, k := range got {
		if k > 8*each {
			t.Errorf("%s got %d of %d", n, k, nodes*each)
		}
	}
}

// The estimate follows the truth while the report lags: tasks come and go at
// random, reports are smoothed with τ and arrive every 50 ms.
func TestEstimate(t *testing.T) {
	const tick = int64(time.Millisecond)
	s, v := New(Config{}), view(2)
	r := rand.New(rand.NewPCG(1, 2))
	var truth, smooth, worst float64
	var pids []unum.Pid
	next := unum.Pid(70000)
	for now := tick; now < int64(20*time.Second); now += tick {
		smooth += (truth - smooth) * (1 - math.Exp(-float64(tick)/1e9))
		if now%(50*tick) == 0 {
			v.Nodes[0].Load.Running = smooth
			v.Nodes[0].Load.At++
			worst = max(worst, math.Abs(s.see(now, &v.Nodes[0])-truth))
		}
		if r.IntN(40) == 0 {
			next++
			s.begin(now, next, "n1", "/cc1", 1)
			pids = append(pids, next)
			truth++
		}
		if len(pids) > 0 && r.IntN(45) == 0 {
			i := r.IntN(len(pids))
			s.Finished(now, pids[i], Outcome{})
			pids = append(pids[:i], pids[i+1:]...)
			truth--
		}
	}
	if worst > 0.3 {
		t.Errorf("the estimate was off by %.2f tasks", worst)
	}
	if len(s.live) != len(pids) {
		t.Errorf("%d processes are counted, %d live", len(s.live), len(pids))
	}
}

func TestErrors(t *testing.T) {
	s, v := New(Config{}), view(1, 1)
	d := s.Place(0, v, Request{Pid: 70000, Path: "/bin/true", Hint: "n9", Caller: "n1", Home: "n1"})
	if !errors.Is(d.Err, unum.ErrNoNode) || d.Node != "n1" {
		t.Errorf("n9: %+v", d)
	}
	v.Nodes[1].State = unum.Down
	if d = s.Place(0, v, Request{Path: "/bin/true", Hint: "n2", Caller: "n1", Home: "n1"}); !errors.Is(d.Err, unum.ErrNodeLost) {
		t.Errorf("lost node: %+v", d)
	}
	v.Nodes[1].State = unum.Draining
	if d = s.Place(0, v, Request{Path: "/bin/true", Hint: "n2", Caller: "n1", Home: "n1"}); !errors.Is(d.Err, ErrNotTaking) {
		t.Errorf("draining node: %+v", d)
	}
	if len(s.live) != 0 {
		t.Errorf("refused placements are counted: %v", s.live)
	}
}

// The wall time of a command on a capped node is not what it needs.
func TestWallTime(t *testing.T) {
	s, v := New(Config{}), view(0.25)
	s.Place(0, v, Request{Pid: 70000, Path: "/bin/sed", Caller: "n1", Home: "n1"})
	s.Finished(8e6, 70000, Outcome{Wall: 8 * time.Millisecond})
	if h, _ := s.hist.get("/bin/sed"); h.used != 2*time.Millisecond {
		t.Errorf("8 ms at a quarter of a processor are %v", h.used)
	}
}

// What callers can make grow is bounded.
func TestBounds(t *testing.T) {
	s := New(Config{Commands: 16})
	for i := range 1000 {
		s.Learn(fmt.Sprint("/bin/c", i), Outcome{CPU: 1})
		s.Forbid(fmt.Sprint("/bin/c", i), "x")
	}
	if len(s.hist.m) != 16 || s.hist.order.Len() != 16 || len(s.Kept()) != 16 {
		t.Errorf("tables hold %d, %d, %d", len(s.hist.m), s.hist.order.Len(), len(s.Kept()))
	}
	if _, ok := s.hist.get("/bin/c999"); !ok {
		t.Error("the newest was forgotten")
	}
}

func BenchmarkPlace(b *testing.B) {
	for _, n := range []int{3, 64} {
		b.Run(fmt.Sprintf("nodes=%d", n), func(b *testing.B) {
			cpus := make([]float64, n)
			for i := range cpus {
				cpus[i] = 0.5
			}
			s, v := New(Config{}), view(cpus...)
			argv := []string{"sh", "-c", "/bin/bash ../libtool --mode=compile gcc -c a.c"}
			s.Learn(Command("/bin/sh", argv), Outcome{CPU: time.Second})
			now := int64(0)
			for b.Loop() {
				now += 1000
				v.Nodes[int(now/1000)%n].Load.At++
				s.Place(now, v, Request{Pid: 70000, Path: "/bin/sh", Argv: argv, Caller: "n1", Home: "n1"})
				s.Finished(now, 70000, Outcome{CPU: time.Second})
			}
		})
	}
}
