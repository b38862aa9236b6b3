package calls

import (
	"context"

	"golang.org/x/sys/unix"

	"unum"
	"unum/deputy"
	"unum/seccomp"
	"unum/sys"
)

// idsReq asks the node where a process was born.
type idsReq struct{ Pid unum.Pid }

type idsRes struct {
	Found           bool
	Ppid, Pgid, Sid unum.Pid
}

// onIDs tells who the parent of a process born here is, and its group and
// session: those of its deputy, if it runs elsewhere.
func (c *Calls) onIDs(ctx context.Context, _ unum.NodeID, q *idsReq) (*idsRes, error) {
	host, err := c.cfg.World.ToHost(q.Pid)
	if err != nil {
		return &idsRes{}, nil
	}
	t, err := sys.ReadTask(host)
	if err != nil {
		return &idsRes{}, nil
	}
	_, away := c.cfg.Placed.Where(t.Pid)
	if !away && c.cfg.Registry.Find(t.Tgid) != nil {
		return &idsRes{}, nil
	}
	res := &idsRes{Found: true, Pgid: t.Pgid, Sid: t.Sid}
	if id, ok := c.cfg.Placed.Adopter(ctx, t.Tgid); ok {
		// It is an orphan, or stands here for one, of a tree of another node.
		if up := c.askAdopter(ctx, id, q.Pid); up != nil && up.Found {
			res.Ppid = up.Ppid
		}
	} else if t.Ppid != 0 && c.cfg.Registry.Find(t.Ppid) == nil {
		res.Ppid, _ = c.cfg.World.ToWorld(t.Ppid)
	}
	if res.Ppid == 0 {
		res.Ppid = 1 // an agent of ours, or the world's pid 1
	}
	return res, nil
}

// getppid of a body is what its deputy's is; any other process's is its own.
func (c *Calls) getppid(n *seccomp.Notif) {
	bodies := c.cfg.Placed.Bodies()
	if len(bodies) == 0 && !c.cfg.Placed.Nursed() {
		n.Continue()
		return
	}
	tgid, err := sys.Tgid(n.Tid)
	if err != nil {
		n.Continue()
		return
	}
	me := unum.Pid(0)
	for _, host := range bodies {
		if host == 0 {
			// One that has just begun may be known by its number only.
			me, _ = c.cfg.World.ToWorld(tgid)
			break
		}
	}
	for pid, host := range bodies {
		if (host == tgid || host == 0 && pid == me) && !c.own(pid) {
			c.go_(func(ctx context.Context) {
				if res := c.askIDs(ctx, pid); res != nil && res.Found {
					n.Return(int64(res.Ppid))
					return
				}
				n.Continue()
			})
			return
		}
	}
	c.orphanParent(n, tgid)
}

// orphanParent answers getppid of a process that was born here.
func (c *Calls) orphanParent(n *seccomp.Notif, tgid int) {
	if !c.cfg.Placed.Nursed() {
		n.Continue()
		return
	}
	c.go_(func(ctx context.Context) {
		if id, ok := c.cfg.Placed.Adopter(ctx, tgid); ok {
			if pid, err := c.cfg.World.ToWorld(tgid); err == nil {
				if res := c.askAdopter(ctx, id, pid); res != nil && res.Found {
					n.Return(int64(res.Ppid))
					return
				}
			}
		}
		n.Continue()
	})
}

// askIDs asks the node where pid was born; nil if it does not answer.
func (c *Calls) askIDs(ctx context.Context, pid unum.Pid) *idsRes {
	peer, err := c.home(pid)
	if err != nil {
		return nil
	}
	return asked(ctx, peer, pid)
}

// askAdopter asks the node that has the deputy of an orphan.
func (c *Calls) askAdopter(ctx context.Context, id unum.NodeID, pid unum.Pid) *idsRes {
	peer, err := c.cfg.Peer(id)
	if err != nil {
		return nil
	}
	return asked(ctx, peer, pid)
}

func asked(ctx context.Context, peer unum.Peer, pid unum.Pid) *idsRes {
	res, err := unum.Call[idsRes](ctx, peer, "calls.ids", &idsReq{pid})
	if err != nil {
		return nil
	}
	return res
}

// getids answers getpgid and getsid of a process of another node.
func (c *Calls) getids(n *seccomp.Notif) {
	pid := unum.Pid(int32(n.Args[0]))
	if pid <= 0 || c.own(pid) || c.here(n, pid) {
		n.Continue()
		return
	}
	c.go_(func(ctx context.Context) {
		if _, nested, err := c.caller(n); err != nil || nested {
			n.Continue()
			return
		}
		res := c.askIDs(ctx, pid)
		switch {
		case res == nil || !res.Found:
			n.Errno(unix.ESRCH)
		case n.Nr == unix.SYS_GETSID:
			n.Return(int64(res.Sid))
		default:
			n.Return(int64(res.Pgid))
		}
	})
}

// mirrorReq makes the deputy of a body do what the body is about to do.
type mirrorReq struct {
	Pid unum.Pid
	Op  mirrorOp
	Arg unum.Pid
}

type mirrorRes struct {
	Errno int
	Value int // of mirrorGetDeath
}

type mirrorOp int

const (
	mirrorSetpgid    mirrorOp = iota + 1 // Arg: the group
	mirrorSetsid                         //
	mirrorForeground                     // Arg: the group
	mirrorNoTTY                          //
	mirrorSetDeath                       // Arg: the signal
	mirrorGetDeath                       //
)

// setids answers setpgid and setsid. A body's deputy goes first, and if it
// cannot, neither can the body.
func (c *Calls) setids(n *seccomp.Notif) {
	bodies := c.cfg.Placed.Bodies()
	if len(bodies) == 0 {
		n.Continue()
		return
	}
	c.forCaller(n, func(ctx context.Context, t *sys.Task) {
		req := &mirrorReq{Pid: t.Pid, Op: mirrorSetsid}
		if n.Nr == unix.SYS_SETPGID {
			pid, pgid := unum.Pid(int32(n.Args[0])), unum.Pid(int32(n.Args[1]))
			if pid != 0 && pid != t.Pid || pgid < 0 {
				n.Continue() // a child is native here, whatever its parent is
				return
			}
			if pgid == 0 {
				pgid = t.Pid
			}
			req.Op, req.Arg = mirrorSetpgid, pgid
		}
		if _, body := bodies[t.Pid]; !body || c.own(t.Pid) {
			if req.Op == mirrorSetpgid && !c.own(req.Arg) && !c.own(t.Sid) {
				c.joinable(ctx, t, req.Arg)
			}
			n.Continue()
			return
		}
		no, err := c.mirror(ctx, req)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			c.log.Warn("mirror at home", "pid", t.Pid, "op", req.Op, "err", err)
		}
		if no != 0 {
			n.Errno(no)
			return
		}
		if req.Op == mirrorSetpgid && req.Arg != t.Pid {
			c.joinable(ctx, t, req.Arg)
		}
		n.Continue()
	})
}

// joinable makes a group of the session exist here, if it exists at home.
func (c *Calls) joinable(ctx context.Context, t *sys.Task, pgid unum.Pid) {
	if err := c.cfg.Placed.EnsureGroup(ctx, t.Sid, pgid); err != nil {
		c.log.Warn("make a group joinable", "pid", t.Pid, "pgid", pgid, "err", err)
	}
}

// mirror asks the node that placed a body here.
func (c *Calls) mirror(ctx context.Context, req *mirrorReq) (unix.Errno, error) {
	res, err := c.mirrored(ctx, req)
	if err != nil || res == nil {
		return 0, err
	}
	return unix.Errno(res.Errno), nil
}

// mirrored is mirror with all of the answer; nil if nobody placed it here.
func (c *Calls) mirrored(ctx context.Context, req *mirrorReq) (*mirrorRes, error) {
	id, ok := c.cfg.Placed.Home(req.Pid)
	if !ok {
		return nil, nil
	}
	peer, err := c.cfg.Peer(id)
	if err != nil {
		return nil, err
	}
	return unum.Call[mirrorRes](ctx, peer, "calls.mirror", req)
}

// onMirror makes the deputy follow its body; first of all the deputy at whose
// node the process was born.
func (c *Calls) onMirror(ctx context.Context, _ unum.NodeID, q *mirrorReq) (*mirrorRes, error) {
	if q.Op == mirrorSetDeath || q.Op == mirrorGetDeath {
		return c.onDeath(ctx, q)
	}
	if no, err := c.mirror(ctx, q); err != nil || no != 0 {
		return &mirrorRes{Errno: int(no)}, err
	}
	p := &deputy.Program{}
	at, check := 0, true
	cookie := c.cfg.Cookie
	switch q.Op {
	case mirrorSetpgid:
		at = p.Do(unix.SYS_SETPGID, 0, uint64(q.Arg), 0, 0, 0, cookie)
	case mirrorSetsid:
		at = p.Do(unix.SYS_SETSID, 0, 0, 0, 0, 0, cookie)
	case mirrorForeground:
		tty := p.Must(unix.SYS_OPENAT, atCwd, p.String("/dev/tty"), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY)
		at = p.DoRef(tty, unix.SYS_IOCTL, unix.TIOCSPGRP, p.Halves(uint32(q.Arg)), 0, 0, cookie)
		p.MustRef(tty, unix.SYS_CLOSE)
		check = false
	case mirrorNoTTY:
		tty := p.Must(unix.SYS_OPENAT, atCwd, p.String("/dev/tty"), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY)
		at = p.DoRef(tty, unix.SYS_IOCTL, unix.TIOCNOTTY, 0, 0, 0, cookie)
		p.MustRef(tty, unix.SYS_CLOSE)
		check = false
	default:
		return &mirrorRes{Errno: int(unix.EINVAL)}, nil
	}
	if q.Op == mirrorSetpgid && !c.own(q.Pid) {
		c.joinableBy(ctx, q.Pid, q.Arg)
	}
	res, err := c.cfg.Placed.InDeputy(ctx, q.Pid, p)
	if err != nil {
		return nil, err
	}
	if check && at < len(res.Rets) && res.Rets[at] < 0 {
		return &mirrorRes{Errno: int(-res.Rets[at])}, nil
	}
	if q.Op == mirrorForeground {
		c.cfg.Placed.SyncTerminal(ctx, q.Arg)
	}
	return &mirrorRes{}, nil
}

// joinableBy is joinable in the middle of a chain.
func (c *Calls) joinableBy(ctx context.Context, pid, pgid unum.Pid) {
	host, err := c.cfg.World.ToHost(pid)
	if err != nil {
		return
	}
	if t, err := sys.ReadTask(host); err == nil && pgid != pid {
		c.joinable(ctx, t, pgid)
	}
}

const atCwd = uint64(0xffffffffffffff9c) // AT_FDCWD
