package cluster_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"unum"
	"unum/cluster"
	"unum/cluster/detect"
	"unum/cluster/mem"
)

// network is the links of a few nodes, in memory.
type network struct {
	mu    sync.Mutex
	nodes map[unum.NodeID]*link
	cut   map[[2]unum.NodeID]bool                 // nothing passes
	hung  map[unum.NodeID]bool                    // its kernel answers, its daemon does nothing
	probe func(context.Context, unum.NodeID) bool // instead of what cut says
}

type link struct {
	net  *network
	id   unum.NodeID
	tell func(unum.NodeID, []byte)
	mu   sync.Mutex
	log  []string
}

func (n *network) link(id unum.NodeID) *link {
	l := &link{net: n, id: id}
	n.mu.Lock()
	n.nodes[id] = l
	n.mu.Unlock()
	return l
}

func (n *network) isolate(id unum.NodeID, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for other := range n.nodes {
		n.cut[[2]unum.NodeID{id, other}] = on
		n.cut[[2]unum.NodeID{other, id}] = on
	}
}

func (l *link) Tell(id unum.NodeID, _ string, msg []byte) bool {
	l.net.mu.Lock()
	to := l.net.nodes[id]
	cut := l.net.cut[[2]unum.NodeID{l.id, id}] || l.net.hung[l.id] || l.net.hung[id]
	l.net.mu.Unlock()
	if to == nil || cut || to.tell == nil {
		return false
	}
	to.tell(l.id, msg)
	return true
}

func (l *link) Hear() {}

func (l *link) HandleTell(_ string, f func(unum.NodeID, []byte)) {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	l.tell = f
}

func (l *link) OnLink(func(unum.NodeID, unum.Incarnation, bool, bool)) {}

func (l *link) Probe(ctx context.Context, id unum.NodeID) bool {
	l.net.mu.Lock()
	probe := l.net.probe
	cut := l.net.cut[[2]unum.NodeID{l.id, id}]
	l.net.mu.Unlock()
	if probe != nil {
		return probe(ctx, id)
	}
	return !cut
}

func (l *link) note(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.log = append(l.log, fmt.Sprintf(format, args...))
}

func (l *link) Lost(id unum.NodeID, e unum.Epoch) { l.note("lost %s:%d", id, e) }
func (l *link) Back(id unum.NodeID, e unum.Epoch) { l.note("back %s:%d", id, e) }
func (l *link) Forget(id unum.NodeID)             { l.note("forget %s", id) }

func (l *link) noted(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range l.log {
		if x == s {
			return true
		}
	}
	return false
}

type member struct {
	*cluster.Heartbeats
	store *mem.Store
	lease cluster.Lease
	link  *link
	alone atomic.Bool
}

func start(t *testing.T, w *mem.World, n *network, id unum.NodeID) *member {
	t.Helper()
	m := &member{store: w.Store(), link: n.link(id)}
	m.register(t, id)
	m.Heartbeats = cluster.NewHeartbeats(cluster.HeartbeatConfig{
		Node: id, Store: m.store, Link: m.link,
		Load:     func() unum.Load { return unum.Load{CPUs: float64(len(id)), Guests: int(id[1] - '0')} },
		Isolated: m.alone.Store,
		Detect:   detect.Config{Period: 10 * time.Millisecond},
	})
	if err := m.Start(context.Background(), m.lease); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close(); m.store.Close() })
	return m
}

func (m *member) register(t *testing.T, id unum.NodeID) {
	t.Helper()
	ctx := context.Background()
	l, err := m.store.Register(ctx, cluster.Registration{ID: id, Addr: string(id), Incarnation: 1})
	if err == nil {
		err = m.store.SetState(ctx, id, l.Node().Epoch, unum.Up)
	}
	if err != nil {
		t.Fatal(err)
	}
	m.lease = l
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (m *member) state(id unum.NodeID) (s unum.NodeState) {
	for _, n := range m.Nodes() {
		if n.ID == id {
			s = n.State
		}
	}
	return s
}

func TestHeartbeats(t *testing.T) {
	w := mem.NewWorld(time.Minute)
	n := &network{nodes: map[unum.NodeID]*link{}, cut: map[[2]unum.NodeID]bool{}, hung: map[unum.NodeID]bool{}}
	n1, n2, n3 := start(t, w, n, "n1"), start(t, w, n, "n2"), start(t, w, n, "n3")
	for _, m := range []*member{n1, n2, n3} {
		eventually(t, "loads spread", func() bool {
			list := m.Nodes()
			for i, x := range list {
				if x.Load.Guests != i+1 || x.State != unum.Up {
					return false
				}
			}
			return len(list) == 3
		})
	}
	// A daemon hangs: suspected by both, and not declared down.
	n.mu.Lock()
	n.hung["n3"] = true
	n.mu.Unlock()
	eventually(t, "n3 is suspect", func() bool { return n1.state("n3") == unum.Suspect && n2.state("n3") == unum.Suspect })
	time.Sleep(200 * time.Millisecond)
	if s := n1.state("n3"); s != unum.Suspect {
		t.Errorf("a hung daemon is %s", s)
	}
	n.mu.Lock()
	n.hung["n3"] = false
	n.mu.Unlock()
	eventually(t, "n3 is up again", func() bool { return n1.state("n3") == unum.Up && n2.state("n3") == unum.Up })
	// The node is gone.
	began := time.Now()
	n.isolate("n3", true)
	eventually(t, "n3 is down", func() bool { return n1.state("n3") == unum.Down && n2.state("n3") == unum.Down })
	t.Logf("down after %v, with a period of 10 ms", time.Since(began))
	eventually(t, "n3 knows that it is cut off", n3.alone.Load)
	if n1.alone.Load() || n2.alone.Load() {
		t.Error("the others think that they are cut off")
	}
	select {
	case <-n3.lease.Lost():
	case <-time.After(5 * time.Second):
		t.Error("n3 holds its lease")
	}
	for _, m := range []*member{n1, n2} {
		eventually(t, "link lost", func() bool { return m.link.noted("lost n3:1") })
	}
	if s := n1.state("n2"); s != unum.Up {
		t.Errorf("n2 is %s", s)
	}
	// And back.
	n.isolate("n3", false)
	n3.register(t, "n3")
	n3.SetLease(n3.lease)
	for _, m := range []*member{n1, n2} {
		eventually(t, "n3 is back", func() bool { return m.state("n3") == unum.Up && m.link.noted("back n3:2") })
	}
	eventually(t, "n3 knows that it is not cut off", func() bool { return !n3.alone.Load() })
	time.Sleep(100 * time.Millisecond)
	if s := n1.state("n3"); s != unum.Up {
		t.Errorf("back, then %s", s)
	}
	// It leaves.
	if err := n3.store.SetState(context.Background(), "n3", 2, unum.Left); err != nil {
		t.Fatal(err)
	}
	eventually(t, "n3 left", func() bool { return n1.state("n3") == unum.Left && n1.link.noted("forget n3") })
}

// Nobody is lost who is seen for the first time, and a life that is followed by
// the next one is, though nobody had missed it.
func TestFreshLife(t *testing.T) {
	w := mem.NewWorld(time.Minute)
	n := &network{nodes: map[unum.NodeID]*link{}, cut: map[[2]unum.NodeID]bool{}, hung: map[unum.NodeID]bool{}}
	n1, n2 := start(t, w, n, "n1"), start(t, w, n, "n2")
	for _, m := range []*member{n1, n2} {
		eventually(t, "both up", func() bool { return m.state("n1") == unum.Up && m.state("n2") == unum.Up })
	}
	l, err := n2.store.Register(t.Context(), cluster.Registration{ID: "n2", Addr: "n2", Incarnation: 2, Fresh: true})
	if err != nil {
		t.Fatal(err)
	}
	n2.SetLease(l)
	eventually(t, "n2 is back", func() bool { return n1.link.noted("back n2:2") })
	n1.link.mu.Lock()
	defer n1.link.mu.Unlock()
	if want := []string{"back n2:1", "lost n2:1", "back n2:2"}; !slices.Equal(n1.link.log, want) {
		t.Errorf("%q, want %q", n1.link.log, want)
	}
}

// With one observer only, the lease decides.
func TestHeartbeatsOfTwo(t *testing.T) {
	w := mem.NewWorld(400 * time.Millisecond)
	n := &network{nodes: map[unum.NodeID]*link{}, cut: map[[2]unum.NodeID]bool{}, hung: map[unum.NodeID]bool{}}
	n1, n2 := start(t, w, n, "n1"), start(t, w, n, "n2")
	eventually(t, "both up", func() bool { return n1.state("n2") == unum.Up && n2.state("n1") == unum.Up })
	n.isolate("n2", true)
	n2.store.Close() // its lease is not renewed any more
	began := time.Now()
	eventually(t, "n2 is suspect", func() bool { return n1.state("n2") == unum.Suspect })
	eventually(t, "n2 is down", func() bool { return n1.state("n2") == unum.Down })
	if d := time.Since(began); d < 300*time.Millisecond {
		t.Errorf("down after %v, before the lease ran out", d)
	}
}

// A probe whose packet was lost keeps no later one from finding the host.
func TestProbesDoNotWaitForEachOther(t *testing.T) {
	n := &network{nodes: map[unum.NodeID]*link{}, cut: map[[2]unum.NodeID]bool{}, hung: map[unum.NodeID]bool{}}
	w := mem.NewWorld(time.Minute)
	var mu sync.Mutex
	under, most := 0, 0
	n.probe = func(ctx context.Context, _ unum.NodeID) bool {
		mu.Lock()
		under++
		most = max(most, under)
		mu.Unlock()
		<-ctx.Done()
		mu.Lock()
		under--
		mu.Unlock()
		return false
	}
	start(t, w, n, "n1")
	start(t, w, n, "n2")
	n.isolate("n2", true)
	eventually(t, "a second probe while the first hangs", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return most > 1
	})
}
