package rexec

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
	"unum/deputy"
	"unum/sys"
)

// nursery is the parent of one body that has a subreaper above it on another
// node: a stub that is a subreaper itself, so that it gets the orphans of this
// body's tree and no others. Each becomes a body in its turn, as far as its end
// and its stops go, and gets a deputy at home (reaper.go). An orphan is looked
// for when anything ends, before that end is told: so a subreaper that waits
// until it has no children misses none.
type nursery struct {
	parent
	sess    *session
	reapers []unum.NodeID // nodes with a subreaper above

	// Guarded by Guests.mu: the body, then its orphans.
	members []*body
}

// nurseries finds them by the host PIDs of their stubs.
type nurseries struct {
	mu  sync.Mutex
	all map[int]*nursery
}

func (ns *nurseries) any() bool {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	return len(ns.all) > 0
}

func (ns *nurseries) by(host int) *nursery {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	return ns.all[host]
}

func (ns *nurseries) put(n *nursery) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	ns.all[n.agent.HostPid] = n
}

func (ns *nurseries) drop(n *nursery) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if ns.all[n.agent.HostPid] == n {
		delete(ns.all, n.agent.HostPid)
	}
}

// nurse makes the nursery of a body.
func (g *Guests) nurse(ctx context.Context, s *session, b *body) (*nursery, error) {
	s.mu.Lock()
	agent, err := g.mk.agent(ctx, s.agent, 0, false, false, nil)
	s.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("nursery: %w", err)
	}
	p := &deputy.Program{}
	p.Must(unix.SYS_PRCTL, unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0, g.cfg.Cookie)
	res, err := agent.Run(ctx, p)
	if err == nil {
		_, err = res.Err()
	}
	if err != nil {
		agent.Kill()
		return nil, fmt.Errorf("nursery: %w", err)
	}
	b.Nursery = agent.HostPid
	n := g.newNursery(s, agent, b.Reapers)
	n.members = []*body{b}
	n.watch(g.cfg.Cookie, g.log, n.tell(g))
	g.outlive(agent)
	return n, nil
}

func (g *Guests) newNursery(s *session, agent *deputy.Stub, reapers []unum.NodeID) *nursery {
	n := &nursery{parent: parent{agent: agent}, sess: s, reapers: reapers}
	g.nurseries.put(n)
	return n
}

// tell handles what the nursery has reaped.
func (n *nursery) tell(g *Guests) told {
	return func(evs []childEvent) { g.ends(n, evs) }
}

// ends takes in orphans, then hands on what became of members.
func (g *Guests) ends(n *nursery, evs []childEvent) {
	pids, _ := childrenOf(n.agent.HostPid)
	g.mu.Lock()
	via := n.via()
	var fresh []*body
	known := func(pid unum.Pid) bool {
		for _, b := range n.members {
			if b.place.Pid == pid {
				return true
			}
		}
		return false
	}
	for _, host := range pids {
		t, err := sys.ReadTask(host)
		if err != nil || known(t.Pid) || g.bodies[t.Pid] != nil || isNewborn(host) {
			continue
		}
		fresh = append(fresh, g.orphan(n, via, t))
	}
	for _, e := range evs {
		if !known(e.pid) && g.bodies[e.pid] == nil && via != nil {
			// It came and ended in one.
			t := &sys.Task{Pid: e.pid, Pgid: via.place.Pgid, Sid: via.place.Sid}
			t.Uid[0] = uint32(e.info.Uid())
			fresh = append(fresh, g.orphan(n, via, t))
		}
	}
	var wait []<-chan struct{}
	for _, b := range n.members {
		if b.adopted() {
			wait = append(wait, b.ready)
		}
	}
	g.mu.Unlock()
	for _, b := range fresh {
		if b != nil {
			g.wg.Go(func() { g.place(b, via) })
		}
	}
	for i := range evs {
		g.ended(&evs[i], wait)
	}
}

// via is a member whose deputy stands until further orphans have theirs.
// Preconditions: Guests.mu is held.
func (n *nursery) via() *body {
	for _, b := range n.members {
		if !b.over {
			return b
		}
	}
	return nil
}

// orphan makes a member of an orphan; nil if nobody can take it in.
// Preconditions: Guests.mu is held.
func (g *Guests) orphan(n *nursery, via *body, t *sys.Task) *body {
	if via == nil {
		return nil
	}
	b := &body{
		bodyRecord: bodyRecord{
			Place: carry.Placement{
				ID: g.nextID(), Pid: t.Pid, Pgid: t.Pgid, Sid: t.Sid,
				Home: via.place.Home, Guest: g.cfg.Node,
			},
			Sid: n.sess.sid, Path: t.Comm, Nursery: n.agent.HostPid, Reapers: n.reapers, Uid: t.Uid[0], Gid: t.Gid[0],
			Orphan: true,
		},
		sess: n.sess, nursery: n, parent: n.agent, born: true, decide: make(chan struct{}),
	}
	b.place = b.Place
	b.ready = b.decide
	b.stub = deputy.Ended(t.Pid)
	if t.Tgid != 0 {
		if s, err := g.cfg.Registry.Watch(t.Tgid, t.Pid); err == nil {
			b.stub = s
		}
	}
	n.members = append(n.members, b)
	g.orphans[t.Pid] = b
	n.sess.bodies++
	if err := g.recBodies.save(b.key(), &b.bodyRecord); err != nil {
		g.log.Error("write down an orphan", "pid", t.Pid, "err", err)
	}
	return b
}

// place asks home for an orphan's deputy. One that gets none is nobody's. By way
// of itself it is asked again, and has one, or gets none.
func (g *Guests) place(b, via *body) {
	if via != b {
		<-via.ready
	}
	peer, err := g.cfg.Peer(b.place.Home)
	if err == nil {
		_, err = unum.Call[struct{}](context.Background(), peer, "rexec.adopt", &adoptReq{
			Via: via.place, Orphan: b.place, Uid: b.Uid, Gid: b.Gid, Name: b.Path,
		})
	}
	if err != nil {
		g.log.Info("an orphan stays with this node's pid 1", "pid", b.place.Pid, "home", b.place.Home, "err", err)
		b.stub = nil
		g.recBodies.remove(b.key())
	}
	close(b.decide)
}

// adopted says whether a body was born here and became one as an orphan.
func (b *body) adopted() bool { return b.Orphan }

// find returns the body of a number, also one that became one as an orphan.
// Preconditions: Guests.mu is held.
func (g *Guests) find(pid unum.Pid) *body {
	if b := g.bodies[pid]; b != nil {
		return b
	}
	return g.orphans[pid]
}

// quit takes a member out that has ended. With the last one the nursery ends.
func (g *Guests) quit(b *body) {
	n := b.nursery
	if n == nil {
		return
	}
	g.mu.Lock()
	for i, m := range n.members {
		if m == b {
			n.members = append(n.members[:i:i], n.members[i+1:]...)
			break
		}
	}
	last := len(n.members) == 0
	g.mu.Unlock()
	if last {
		g.nurseries.drop(n)
		n.agent.Kill()
	}
}

// Nursed says whether orphans here may have a parent on another node.
func (g *Guests) Nursed() bool { return g.nurseries.any() }

// Adopter returns the node that has the parent of a process that was born here
// and whose parent has ended; ok is false if it is still its own parent's, or
// nobody's on another node.
func (g *Guests) Adopter(ctx context.Context, host int) (id unum.NodeID, ok bool) {
	if !g.nurseries.any() {
		return "", false
	}
	t, err := sys.ReadTask(host)
	if err != nil {
		return "", false
	}
	n := g.nurseries.by(t.Ppid)
	if n == nil {
		return "", false
	}
	g.ends(n, nil)
	g.mu.Lock()
	b := g.orphans[t.Pid]
	g.mu.Unlock()
	if b == nil {
		return "", false
	}
	select {
	case <-b.ready:
	case <-ctx.Done():
		return "", false
	}
	return b.place.Home, b.stub != nil
}

// childrenOf lists the host PIDs of a stub's children.
func childrenOf(host int) (out []int, err error) {
	b, err := sys.ReadProc(fmt.Sprintf("/proc/%d/task/%d/children", host, host))
	if err != nil {
		return nil, err
	}
	for _, f := range bytes.Fields(b) {
		if pid, err := strconv.Atoi(string(f)); err == nil {
			out = append(out, pid)
		}
	}
	return out, nil
}

// rejoin puts a body that a new daemon has found into its nursery.
func (g *Guests) rejoin(b *body) {
	if b.Nursery == 0 {
		return
	}
	n := g.nurseries.by(b.Nursery)
	if n == nil {
		pid, err := sys.WorldPid(b.Nursery)
		if err != nil || !isStub(b.Nursery) {
			return // killed: what it had is with pid 1
		}
		n = g.newNursery(b.sess, &deputy.Stub{HostPid: b.Nursery, Pid: pid}, b.Reapers)
		n.settled = make(chan struct{})
	}
	b.nursery = n
	n.members = append(n.members, b)
}

// resumeNurseries lets the nurseries tell, now that all members are known, and
// asks again for the deputies of orphans.
func (g *Guests) resumeNurseries() error {
	g.nurseries.mu.Lock()
	var all []*nursery
	for _, n := range g.nurseries.all {
		all = append(all, n)
	}
	g.nurseries.mu.Unlock()
	for _, n := range all {
		agent, err := g.cfg.Registry.Adopt(n.agent.HostPid, n.agent.Pid)
		if err != nil {
			return err
		}
		n.agent = agent
		via := n.members[0]
		for _, b := range n.members {
			if !b.adopted() {
				via = b
			}
		}
		g.mu.Lock()
		for _, b := range n.members {
			b.parent = agent
		}
		g.mu.Unlock()
		g.outlive(agent)
		for _, b := range n.members {
			if b.adopted() && b.decide != nil {
				g.wg.Go(func() { g.place(b, via) })
			}
		}
		n.watch(g.cfg.Cookie, g.log, n.tell(g)).reap()
	}
	return nil
}
