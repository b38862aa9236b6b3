package rexec

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
	"unum/deputy"
	"unum/sys"
)

// A child subreaper (man 2 PR_SET_CHILD_SUBREAPER) takes in the orphans of its
// descendants. Where a placed process is below one on another node, its orphans
// stay on their node and run on, and the subreaper gets a deputy of each as its
// child: the deputy of the body that leaves them forks a child that forks the
// stand-in and ends, so that the kernel finds the parent as it does for any
// orphan, also when that one ends. The guest's half is nursery.go.

// reapers are the processes of this node that asked to be child subreapers: the
// kernel does not tell of others.
type reapers struct {
	records records[uint64]
	count   atomic.Int32

	mu  sync.Mutex
	set map[int]uint64 // start times by host PID
}

func openReapers(dir string) (*reapers, error) {
	r := &reapers{set: map[int]uint64{}}
	var err error
	if r.records, err = openRecords[uint64](filepath.Join(dir, "subreapers")); err != nil {
		return nil, err
	}
	all, err := r.records.load()
	if err != nil {
		return nil, err
	}
	for key, start := range all {
		if host, err := strconv.Atoi(key); err == nil {
			r.set[host] = *start
		}
	}
	r.sweep()
	return r, nil
}

// sweep forgets those that are gone. Preconditions: mu is held, or r is new.
func (r *reapers) sweep() {
	for host, start := range r.set {
		if b, err := sys.ReadBirth(host); err != nil || b.Start != start {
			delete(r.set, host)
			r.records.remove(strconv.Itoa(host))
		}
	}
	r.count.Store(int32(len(r.set)))
}

func (r *reapers) note(host int, on bool) error {
	b, err := sys.ReadBirth(host)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if on {
		r.set[host] = b.Start
		err = r.records.save(strconv.Itoa(host), &b.Start)
	} else {
		delete(r.set, host)
		r.records.remove(strconv.Itoa(host))
	}
	r.sweep()
	return err
}

func (r *reapers) has(host int, start uint64) bool {
	if r.count.Load() == 0 {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s, ok := r.set[host]
	return ok && s == start
}

// Subreaper notes that a process (a host PID) is one from now on, or is not.
func (h *Homes) Subreaper(host int, on bool) error { return h.reapers.note(host, on) }

// above lists the nodes on which an orphan of a process needs its number, if there
// is a subreaper above it: this one, and those that a body above it was told of.
func (h *Homes) above(t *sys.Task) (nodes []unum.NodeID) {
	if h.reapers.count.Load() == 0 && (h.nursed == nil || !h.nursed.any()) {
		return nil
	}
	for host := t.Ppid; host > 1; {
		b, err := sys.ReadBirth(host)
		if err != nil {
			break
		}
		if nodes == nil && h.reapers.has(host, b.Start) {
			nodes = []unum.NodeID{h.cfg.Node}
		}
		if h.nursed != nil {
			if n := h.nursed.by(host); n != nil {
				return append([]unum.NodeID{h.cfg.Node}, n.reapers...)
			}
		}
		host = b.Ppid
	}
	return nodes
}

// adoptReq asks the node of a body's deputy for a deputy of an orphan that the
// body's tree has left: a child of whom Linux would give it to.
type adoptReq struct {
	Via    carry.Placement // whose deputy has the place in the tree
	Orphan carry.Placement
	Uid    uint32
	Gid    uint32
	Name   string
}

// adopt makes the stand-in. It is asked again if a daemon died meanwhile.
func (h *Homes) adopt(ctx context.Context, from unum.NodeID, req *adoptReq) error {
	pl := req.Orphan
	if pl.Guest != from || pl.Home != h.cfg.Node {
		return unum.ErrNoProcess
	}
	h.mu.Lock()
	if old := h.placed[pl.Pid]; old != nil && old.place.ID == pl.ID {
		h.mu.Unlock()
		_, err := h.deputyOf(ctx, pl.Pid)
		return err
	} else if old != nil {
		h.mu.Unlock()
		return fmt.Errorf("deputy %d: %w", pl.Pid, errBusy)
	}
	via := h.placed[req.Via.Pid]
	h.mu.Unlock()
	if via == nil || via.place.ID != req.Via.ID {
		return unum.ErrNoProcess
	}
	if _, err := h.deputyOf(ctx, req.Via.Pid); err != nil {
		return err
	}
	peer, err := h.cfg.Peer(from)
	if err != nil {
		return err
	}
	p := h.newPlaced(&placedRecord{
		Place: pl, Path: req.Name, Argv: via.Argv, Uid: req.Uid, Since: via.Since,
		Why: "it was born there, and its parent has ended",
	}, peer)
	h.mu.Lock()
	h.placed[pl.Pid] = p
	h.mu.Unlock()
	stub, err := h.standIn(ctx, via, req)
	if err == nil {
		err = h.known(p, stub)
		if err != nil {
			stub.Kill()
		}
	}
	if err != nil {
		h.abandon(p)
		return fmt.Errorf("a deputy of orphan %d: %w", pl.Pid, err)
	}
	h.run(p, stub)
	return nil
}

func (h *Homes) known(p *placed, stub *deputy.Stub) error {
	t, err := sys.ReadTask(stub.HostPid)
	if err != nil {
		return err
	}
	p.Host, p.Start, p.Parent = stub.HostPid, t.Start, t.Ppid
	return h.records.save(p.key(), &p.placedRecord)
}

// standIn forks it. The one between ends without a signal, and its parent, the
// deputy, waits for it: nobody else ever sees it.
func (h *Homes) standIn(ctx context.Context, via *placed, req *adoptReq) (*deputy.Stub, error) {
	via.forking.Lock()
	defer via.forking.Unlock()
	h.resume(via) // a body that was killed while it stood stopped
	pl := req.Orphan
	self := &deputy.Program{}
	switch pl.Pid {
	case pl.Sid:
		self.Do(unix.SYS_SETSID, 0, 0, 0, 0, 0, h.cfg.Cookie)
	case pl.Pgid:
		self.Do(unix.SYS_SETPGID, 0, 0, 0, 0, 0, h.cfg.Cookie)
	default:
		if pl.Pgid != via.place.Pgid {
			self.Do(unix.SYS_SETPGID, 0, uint64(pl.Pgid), 0, 0, 0, h.cfg.Cookie)
		}
	}
	self.Do(unix.SYS_CLOSE_RANGE, 0, uint64(^uint32(0)), 0)
	self.Do(unix.SYS_PRCTL, unix.PR_SET_NAME, self.String(req.Name))
	self.Do(unix.SYS_SETRESGID, uint64(req.Gid), uint64(req.Gid), uint64(req.Gid))
	self.Do(unix.SYS_SETRESUID, uint64(req.Uid), uint64(req.Uid), uint64(req.Uid))
	hello, cancel, err := h.cfg.Registry.Expect(pl.Pid, deputy.First{Prog: self})
	if err != nil {
		return nil, err
	}
	defer cancel()
	end := &deputy.Program{}
	end.Do(unix.SYS_EXIT_GROUP, 0)
	forked := make(chan error, 1)
	_, cancelBetween, err := h.cfg.Registry.ExpectChild(via.Host,
		deputy.First{Prog: forkProgram(int32(pl.Pid)), Done: func(r *deputy.Result, err error) {
			if err == nil {
				_, err = r.Err()
			}
			forked <- err
		}},
		deputy.First{Prog: end})
	if err != nil {
		return nil, err
	}
	defer cancelBetween()
	prog := &deputy.Program{}
	via.mu.Lock()
	prog.Tag = via.seen<<1 | 1
	via.mu.Unlock()
	args := prog.Words(0, 0, 0, 0, 0 /* no signal at its end */, 0, 0, 0, 0, 0)
	between := prog.Fork(args, 80)
	prog.MustRef(between, unix.SYS_WAIT4, 0, unix.WALL, 0)
	res, err := via.stub.Run(ctx, prog)
	if err != nil {
		return nil, err
	}
	if _, err := res.Err(); err != nil {
		return nil, err
	}
	select {
	case err := <-forked:
		if err != nil {
			return nil, err
		}
	default:
		return nil, deputy.ErrGone // it was killed at once
	}
	select {
	case s := <-hello:
		return s, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
