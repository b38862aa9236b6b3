package node

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"unum"
	"unum/cluster"
	"unum/cluster/etcd"
	"unum/sched"
)

// members is the cluster as this daemon sees it.
type members struct {
	d      *Daemon
	store  *etcd.Store
	beats  atomic.Pointer[cluster.Heartbeats]
	roster roster
	epoch  atomic.Uint64
	load   loadMeter

	mu    sync.Mutex
	lease cluster.Lease
	addrs map[unum.NodeID]string
	lives map[unum.NodeID]unum.Epoch // the last that was seen of each
}

func newMembers(d *Daemon) *members {
	m := &members{d: d, addrs: map[unum.NodeID]string{}, lives: map[unum.NodeID]unum.Epoch{}}
	// Until the list has been read, these two are known.
	m.addrs[d.cfg.CoordinatorNode] = d.cfg.Coordinator
	m.addrs[d.cfg.Node] = d.cfg.Listen
	m.roster = roster{
		self: d.cfg.Node, until: time.Now().Add(settleFor), news: make(chan struct{}),
		read: func(ctx context.Context) ([]unum.NodeInfo, error) { return m.store.Nodes(ctx) },
		live: func() []unum.NodeInfo {
			if b := m.beats.Load(); b != nil {
				return b.Nodes()
			}
			return nil
		},
	}
	return m
}

// joinMax is how long a slow machine, or a store that is still starting, may
// take to register a node. The supervisor's lease counts from the last beat, so
// a daemon that is restarted has less.
const joinMax = 30 * time.Second

// join registers the node with the coordination store; on the voter it starts
// the store first. fresh: nothing lives of what ran here before.
func (d *Daemon) join(ctx context.Context, fresh bool) error {
	m := d.members
	c := etcd.Config{
		Node: d.cfg.Node, Voter: d.cfg.Voter, Voters: []unum.NodeID{d.cfg.CoordinatorNode},
		Dir: filepath.Join(d.cfg.StateDir(), "etcd"), Sockets: filepath.Join(d.cfg.StateDir(), "etcd-run"),
		Addr: d.cfg.Listen, Fast: true, Log: d.log,
		Dial: func(ctx context.Context, v unum.NodeID) (net.Conn, error) {
			return d.wire.Dial(ctx, v, etcd.ClientALPN)
		},
	}
	if d.cfg.Voter {
		dial := func(path string) func() (net.Conn, error) {
			return func() (net.Conn, error) { return net.Dial("unix", path) }
		}
		d.wire.RouteTLS("", dial(c.PeerSocket()))
		d.wire.RouteTLS(etcd.ClientALPN, dial(c.ClientSocket()))
	}
	var err error
	if m.store, err = etcd.Open(ctx, c); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, joinMax)
	defer cancel()
	lease, err := m.store.Register(ctx, cluster.Registration{
		ID: d.cfg.Node, Addr: d.cfg.Listen, Incarnation: d.inc, Version: unum.Version,
		Voter: d.cfg.Voter, Fixed: true, Index: d.cfg.Index, Fresh: fresh,
	})
	if err != nil {
		return err
	}
	m.lease = lease
	m.epoch.Store(uint64(lease.Node().Epoch))
	// What a daemon before this one left may be on any node.
	nodes, err := m.store.Nodes(ctx)
	if err != nil {
		return err
	}
	m.roster.joined(nodes)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range nodes {
		m.addrs[n.ID] = n.Addr
	}
	return nil
}

// Up says that the node takes processes, and begins to send heartbeats.
func (m *members) Up(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, joinMax)
	defer cancel()
	m.load.start(m.d)
	if err := m.store.SetState(ctx, m.d.cfg.Node, m.Epoch(), unum.Up); err != nil {
		return err
	}
	beats := cluster.NewHeartbeats(cluster.HeartbeatConfig{
		Node: m.d.cfg.Node, Store: m.store, Link: m.d.wire, Load: m.load.measure, Changed: m.changed, Isolated: m.isolated,
		Log: m.d.log,
	})
	m.beats.Store(beats)
	m.isolated(false) // what the daemon before this one has halted
	return beats.Start(ctx, m.lease)
}

// changed keeps the addresses, and tells placement of nodes that are lost.
func (m *members) changed(nodes []unum.NodeInfo) {
	m.roster.changed()
	for _, n := range nodes {
		m.mu.Lock()
		if n.State == unum.Left {
			delete(m.addrs, n.ID)
		} else if n.Addr != "" {
			m.addrs[n.ID] = n.Addr
		}
		// A life that ended may have been followed by the next one already.
		old, known := m.lives[n.ID]
		news := known && n.Epoch > old || !known && n.State == unum.Down
		m.lives[n.ID] = max(old, n.Epoch)
		m.mu.Unlock()
		if news && n.ID != m.d.cfg.Node {
			m.d.log.Warn("a node is lost", "peer", n.ID, "epoch", n.Epoch)
			m.d.lost(n.ID)
		}
	}
}

// next is told by the link of a node that has begun another life, before that
// asks for anything: what is lost is of the last one.
func (m *members) next(id unum.NodeID, epoch unum.Epoch) {
	m.mu.Lock()
	old, known := m.lives[id]
	news := known && epoch > old
	if news {
		m.lives[id] = epoch
	}
	m.mu.Unlock()
	if news {
		m.d.log.Warn("a node is lost, and back", "peer", id, "epoch", epoch)
		m.d.lost(id)
	}
}

// isolated halts the world while this node seems to be cut off: the others will
// soon agree that it is lost, and what they then do must not be done twice.
// The node with the only vote cannot be declared lost by them.
func (m *members) isolated(alone bool) {
	if m.d.cfg.Voter {
		return
	}
	if err := m.d.world.Freeze(alone); err != nil {
		m.d.log.Warn("halt the world", "halt", alone, "err", err)
	}
}

// Lookup returns the address of a node.
func (m *members) Lookup(id unum.NodeID) (string, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, ok := m.addrs[id]
	return a, ok
}

// At returns the node with an index.
func (m *members) At(i unum.NodeIndex) (unum.NodeID, bool) {
	for _, n := range m.View().Nodes {
		if n.Index == i {
			return n.ID, true
		}
	}
	return "", false
}

// Epoch is this node's.
func (m *members) Epoch() unum.Epoch { return unum.Epoch(m.epoch.Load()) }

// Lost is closed when the node does not hold its lease any more.
func (m *members) Lost() <-chan struct{} { return m.lease.Lost() }

// View is the cluster as placement needs it.
func (m *members) View() sched.View {
	return sched.View{Self: m.d.cfg.Node, Nodes: m.roster.nodes()}
}

// Settled says whether a value of UNUM_NODE can be decided at once.
func (m *members) Settled(hint string) bool { return m.roster.settled(hint) }

// Alone says whether no other node is up.
func (m *members) Alone() bool { return m.roster.alone() }

// Settle waits until it can be, and no longer than this daemon is young.
func (m *members) Settle(ctx context.Context, hint string) {
	if !m.roster.settle(ctx, hint) && ctx.Err() == nil {
		m.d.log.Warn("a node is waited for no longer", "peer", hint)
	}
}

// Close leaves the lease to run out by itself: a daemon that is restarted at
// once is not missed.
func (m *members) Close() {
	if b := m.beats.Load(); b != nil {
		b.Close()
	}
	m.load.stop()
	if m.lease != nil {
		m.lease.Close()
	}
	if m.store != nil {
		m.store.Close()
	}
}
