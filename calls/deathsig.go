package calls

import (
	"context"
	"encoding/binary"

	"golang.org/x/sys/unix"

	"unum"
	"unum/deputy"
	"unum/seccomp"
	"unum/sys"
)

// deathSignal answers prctl(PR_SET_PDEATHSIG) and PR_GET_PDEATHSIG. A body's
// parent is its deputy's, so the signal is the deputy's: the kernel keeps it
// over the exec that placed the process, sends it when the parent dies, and the
// deputy hands it on as any other.
func (c *Calls) deathSignal(n *seccomp.Notif) {
	if !c.cfg.Placed.Hosts() {
		n.Continue()
		return
	}
	c.forCaller(n, func(ctx context.Context, t *sys.Task) {
		if _, body := c.cfg.Placed.Home(t.Pid); !body || c.own(t.Pid) {
			n.Continue()
			return
		}
		req := &mirrorReq{Pid: t.Pid, Op: mirrorGetDeath}
		if n.Args[0] == unix.PR_SET_PDEATHSIG {
			if n.Args[1] > 64 {
				n.Errno(unix.EINVAL)
				return
			}
			req.Op, req.Arg = mirrorSetDeath, unum.Pid(n.Args[1])
		}
		res, err := c.mirrored(ctx, req)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			n.Errno(errno(err))
		case res == nil:
			n.Continue() // it has ended
		case res.Errno != 0:
			n.Errno(unix.Errno(res.Errno))
		default:
			if req.Op == mirrorGetDeath {
				out := binary.LittleEndian.AppendUint32(nil, uint32(res.Value))
				if sys.WriteMem(n.Tid, sys.Piece{Addr: n.Args[1], Data: out}) != nil {
					n.Errno(unix.EFAULT)
					return
				}
			}
			n.Return(0)
		}
	})
}

// subreaper notes a process that becomes a child subreaper: the orphans of what
// is placed from below it are to come to it. The kernel's own are its anyway.
func (c *Calls) subreaper(n *seccomp.Notif) {
	if tgid, err := sys.Tgid(n.Tid); err == nil {
		if err := c.cfg.Placed.Subreaper(tgid, n.Args[1] != 0); err != nil {
			c.log.Warn("note a subreaper", "tid", n.Tid, "err", err)
		}
	}
	n.Continue()
}

// onDeath sets or reads the parent-death signal of the first deputy of a chain,
// whose parent is the body's.
func (c *Calls) onDeath(ctx context.Context, q *mirrorReq) (*mirrorRes, error) {
	if res, err := c.mirrored(ctx, q); err != nil || res != nil {
		return res, err
	}
	p := &deputy.Program{}
	out := make([]byte, 8)
	at := p.Bytes(out)
	if q.Op == mirrorSetDeath {
		p.Do(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uint64(q.Arg), 0, 0, 0, c.cfg.Cookie)
	} else {
		p.Do(unix.SYS_PRCTL, unix.PR_GET_PDEATHSIG, at, 0, 0, 0, c.cfg.Cookie)
	}
	res, err := c.cfg.Placed.AskDeputy(ctx, q.Pid, p, at, out)
	if err != nil {
		return nil, err
	}
	if ret := res.Rets[0]; ret < 0 {
		return &mirrorRes{Errno: int(-ret)}, nil
	}
	return &mirrorRes{Value: int(binary.LittleEndian.Uint32(out))}, nil
}
