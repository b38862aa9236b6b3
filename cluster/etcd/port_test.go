package etcd_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"unum"
	"unum/cluster"
	"unum/cluster/etcd"
	"unum/wire"
)

// daemon is what a node's daemon does of this.
type daemon struct {
	ep    *wire.Endpoint
	store *etcd.Store
	lease cluster.Lease
	epoch atomic.Uint64
	*cluster.Heartbeats
}

type machine struct {
	dir   string
	ca    *wire.Authority
	mu    sync.Mutex
	addrs map[unum.NodeID]string
	cut   map[unum.NodeID]bool // nothing reaches it or comes from it
}

// severed says whether nothing passes between a node and an address.
func (m *machine) severed(id unum.NodeID, addr string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cut[id] {
		return true
	}
	for other, a := range m.addrs {
		if a == addr && m.cut[other] {
			return true
		}
	}
	return false
}

func (m *machine) sever(id unum.NodeID, on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cut[id] = on
}

// cable is a connection that can be silent without breaking.
type cable struct {
	net.Conn
	severed func() bool
	closed  chan struct{}
	once    sync.Once
}

func (c *cable) Write(b []byte) (int, error) {
	if c.severed() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (c *cable) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.severed() {
		<-c.closed // what comes is not seen, nor is an end
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *cable) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

func (m *machine) dialer(id unum.NodeID) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if m.severed(id, addr) {
			ctx, stop := context.WithTimeout(ctx, 300*time.Millisecond)
			defer stop()
			<-ctx.Done()
			return nil, ctx.Err()
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &cable{Conn: c, severed: func() bool { return m.severed(id, addr) }, closed: make(chan struct{})}, nil
	}
}

func (m *machine) lookup(id unum.NodeID) (string, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, ok := m.addrs[id]
	return a, ok
}

func (m *machine) start(t *testing.T, id unum.NodeID, inc unum.Incarnation) *daemon {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	cert, err := m.ca.Issue(id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{}
	var log *slog.Logger
	if os.Getenv("ETCD_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo})).With("self", id)
	}
	d.ep, err = wire.New(wire.Config{
		Node: id, Incarnation: inc, Cert: cert, CA: m.ca.Pool(), Protocol: "unum/1", Version: "v1", Lookup: m.lookup, Dial: m.dialer(id), Log: log,
		Epoch: func() unum.Epoch { return unum.Epoch(d.epoch.Load()) },
	})
	if err != nil {
		t.Fatal(err)
	}
	d.ep.Handle("who", func(context.Context, unum.NodeID, []byte) ([]byte, error) { return []byte(id), nil })
	addr, ok := m.lookup(id)
	if !ok {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	m.addrs[id] = l.Addr().String()
	m.mu.Unlock()
	cfg := etcd.Config{Log: log, Node: id, TTL: 2 * time.Second, Voters: []unum.NodeID{"n1"}}
	cfg.Dial = func(ctx context.Context, v unum.NodeID) (net.Conn, error) { return d.ep.Dial(ctx, v, etcd.ClientALPN) }
	if id == "n1" {
		cfg.Voter, cfg.Fast = true, true
		cfg.Dir, cfg.Sockets, cfg.Addr = filepath.Join(m.dir, "etcd"), filepath.Join(m.dir, "run"), l.Addr().String()
	}
	unix := func(path string) func() (net.Conn, error) {
		return func() (net.Conn, error) { return net.Dial("unix", path) }
	}
	if id == "n1" {
		d.ep.RouteTLS("", unix(cfg.PeerSocket()))
		d.ep.RouteTLS(etcd.ClientALPN, unix(cfg.ClientSocket()))
	}
	go d.ep.Serve(l)
	if d.store, err = etcd.Open(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	d.lease, err = d.store.Register(ctx, cluster.Registration{ID: id, Addr: l.Addr().String(), Incarnation: inc, Version: "v1", Voter: id == "n1"})
	if err == nil {
		d.epoch.Store(uint64(d.lease.Node().Epoch))
		err = d.store.SetState(ctx, id, d.lease.Node().Epoch, unum.Up)
	}
	if err != nil {
		t.Fatal(err)
	}
	d.Heartbeats = cluster.NewHeartbeats(cluster.HeartbeatConfig{
		Node: id, Store: d.store, Link: d.ep, Log: log,
		Load: func() unum.Load { return unum.Load{CPUs: 2, Guests: int(inc)} },
	})
	if err := d.Start(ctx, d.lease); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *daemon) stop() {
	d.Close()
	d.lease.Close()
	d.store.Close()
	d.ep.Close()
}

func (d *daemon) see(t *testing.T, what string, within time.Duration, ok func(map[unum.NodeID]unum.NodeInfo) bool) {
	t.Helper()
	for end := time.Now().Add(within); ; time.Sleep(5 * time.Millisecond) {
		rows := map[unum.NodeID]unum.NodeInfo{}
		for _, n := range d.Nodes() {
			rows[n.ID] = n
		}
		if ok(rows) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("never: %s; now %+v", what, rows)
		}
	}
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	base := "/dev/shm"
	if _, err := os.Stat(base); err != nil {
		base = ""
	}
	dir, err := os.MkdirTemp(base, "unum-port")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ca, err := wire.NewAuthority("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return &machine{dir: dir, ca: ca, addrs: map[unum.NodeID]string{}, cut: map[unum.NodeID]bool{}}
}

// Three daemons over loopback: etcd through the port of n1, heartbeats and
// calls, a restart, and a daemon that does not come back.
func TestDaemons(t *testing.T) {
	m := newMachine(t)
	began := time.Now()
	n1 := m.start(t, "n1", 1)
	defer func() { n1.stop() }()
	n2 := m.start(t, "n2", 1)
	defer func() { n2.stop() }()
	n3 := m.start(t, "n3", 1)
	t.Logf("three daemons after %v", time.Since(began))
	for _, d := range []*daemon{n1, n2, n3} {
		d.see(t, "all up with loads", 5*time.Second, func(n map[unum.NodeID]unum.NodeInfo) bool {
			return n["n1"].Load.CPUs == 2 && n["n2"].Load.CPUs == 2 && n["n3"].Load.CPUs == 2 && n["n3"].State == unum.Up
		})
	}
	t.Logf("all know all after %v", time.Since(began))
	ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
	defer stop()

	n1.stop() // the voter
	n1 = m.start(t, "n1", 2)
	n2.see(t, "n1 restarted", 5*time.Second, func(n map[unum.NodeID]unum.NodeInfo) bool {
		return n["n1"].State == unum.Up && n["n1"].Epoch == 1 && n["n1"].Incarnation == 2 && n["n1"].Load.Guests == 2
	})
	if res, err := n2.ep.Peer("n1").Call(ctx, "who", nil); err != nil || string(res) != "n1" {
		t.Errorf("%q, %v", res, err)
	}

	n3.stop()
	n1.see(t, "n3 suspect", 2*time.Second, func(n map[unum.NodeID]unum.NodeInfo) bool { return n["n3"].State == unum.Suspect })
	n3 = m.start(t, "n3", 2)
	defer func() { n3.stop() }()
	n1.see(t, "n3 back in its epoch", 2*time.Second, func(n map[unum.NodeID]unum.NodeInfo) bool {
		return n["n3"].State == unum.Up && n["n3"].Epoch == 1 && n["n3"].Load.Guests == 2
	})
	n3.stop()
	began = time.Now()
	n2.see(t, "n3 down", 8*time.Second, func(n map[unum.NodeID]unum.NodeInfo) bool { return n["n3"].State == unum.Down && n["n3"].Epoch == 2 })
	t.Logf("a daemon that does not come back: down after %v", time.Since(began))
	n3 = m.start(t, "n3", 3)
	n2.see(t, "n3 back in a new epoch", 2*time.Second, func(n map[unum.NodeID]unum.NodeInfo) bool {
		return n["n3"].State == unum.Up && n["n3"].Epoch == 2 && n["n3"].Index == 2
	})
	if res, err := n2.ep.Peer("n3").Call(ctx, "who", nil); err != nil || string(res) != "n3" {
		t.Errorf("%q, %v", res, err)
	}
}

// A node is silent, as after a power cut or behind a broken cable: the others
// agree long before its lease runs out. It notices, and comes back in another
// epoch when the cable is whole again.
func TestSilentNode(t *testing.T) {
	m := newMachine(t)
	n1, n2, n3 := m.start(t, "n1", 1), m.start(t, "n2", 1), m.start(t, "n3", 1)
	defer func() { n3.stop(); n2.stop(); n1.stop() }()
	for _, d := range []*daemon{n1, n2} {
		d.see(t, "loads", 5*time.Second, func(n map[unum.NodeID]unum.NodeInfo) bool {
			return n["n1"].Load.CPUs == 2 && n["n2"].Load.CPUs == 2 && n["n3"].Load.CPUs == 2
		})
	}
	ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
	defer stop()
	if _, err := n2.ep.Peer("n3").Call(ctx, "who", nil); err != nil {
		t.Fatal(err)
	}
	m.sever("n3", true)
	began := time.Now()
	got := make(chan error, 1)
	go func() { _, err := n2.ep.Peer("n3").Call(ctx, "who", nil); got <- err }()
	for _, d := range []*daemon{n1, n2} {
		d.see(t, "n3 down", 5*time.Second, func(n map[unum.NodeID]unum.NodeInfo) bool { return n["n3"].State == unum.Down && n["n3"].Epoch == 2 })
	}
	took := time.Since(began)
	t.Logf("down after %v", took)
	if took > 1500*time.Millisecond {
		t.Errorf("down after %v: the lease decided", took)
	}
	if err := <-got; !errors.Is(err, unum.ErrNodeLost) {
		t.Errorf("the call under way: %v", err)
	}
	if n1.Nodes()[1].State != unum.Up || n2.Nodes()[0].State != unum.Up {
		t.Errorf("others: %+v", n1.Nodes())
	}
	select {
	case <-n3.lease.Lost():
		t.Logf("it notices after %v: %v", time.Since(began), n3.lease.Err())
	case <-ctx.Done():
		t.Fatal("n3 does not notice")
	}
	m.sever("n3", false)
	n3.stop()
	n3 = m.start(t, "n3", 2)
	if e := n3.lease.Node().Epoch; e != 2 {
		t.Errorf("back in epoch %d", e)
	}
	for _, d := range []*daemon{n1, n2} {
		d.see(t, "n3 back", 5*time.Second, func(n map[unum.NodeID]unum.NodeInfo) bool {
			return n["n3"].State == unum.Up && n["n3"].Load.Guests == 2
		})
		if res, err := d.ep.Peer("n3").Call(ctx, "who", nil); err != nil || string(res) != "n3" {
			t.Errorf("%q, %v", res, err)
		}
	}
}
