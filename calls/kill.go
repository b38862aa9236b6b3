package calls

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"unum"
	"unum/deputy"
	"unum/seccomp"
	"unum/sys"
)

// killReq is a signal on its way to the node on which its target was born.
type killReq struct {
	From Sender
	Pid  unum.Pid // or a thread id
	Sig  int
	Info []byte // of rt_sigqueueinfo; empty for kill
	// Thread says that the signal is for that thread alone; Tgid, if not 0, is
	// the process it must belong to.
	Thread bool
	Tgid   unum.Pid
}

type killRes struct{ Errno int }

const siQueue = -1 // SI_QUEUE

// kill answers kill(pid, sig) and rt_sigqueueinfo(pid, sig, info).
func (c *Calls) kill(n *seccomp.Notif) {
	pid, sig := unum.Pid(int32(n.Args[0])), unix.Signal(int32(n.Args[1]))
	if pid <= 0 && n.Nr == unix.SYS_KILL {
		c.go_(func(ctx context.Context) { c.killGroup(ctx, n, -pid, sig) })
		return
	}
	if pid <= 0 {
		n.Continue()
		return
	}
	_, away := c.cfg.Placed.Where(pid)
	if away && (sig == unix.SIGSTOP || sig == unix.SIGCONT) {
		// The first cannot be blocked, so a deputy cannot hand it on; the second
		// is lost if a deputy is about to stop.
		c.go_(func(ctx context.Context) { c.killDeputy(ctx, n, pid, sig) })
		return
	}
	switch {
	case away || c.own(pid):
		n.Continue()
	case c.here(n, pid):
		c.killHere(n, pid)
	default:
		c.go_(func(ctx context.Context) { c.killFar(ctx, n, &killReq{Pid: pid, Sig: int(sig)}) })
	}
}

// killHere lets a signal go to a body on this node, unless it is over where it
// was born: whose deputy was killed may have been waited for, while the news is
// still on its way to the body.
func (c *Calls) killHere(n *seccomp.Notif, pid unum.Pid) {
	if c.calledBy(n, pid) {
		n.Continue() // it lives
		return
	}
	c.forCaller(n, func(ctx context.Context, t *sys.Task) {
		peer, err := c.home(pid)
		if err != nil {
			n.Continue()
			return
		}
		res, err := unum.Call[killRes](ctx, peer, "calls.kill", &killReq{From: senderOf(t), Pid: pid})
		switch {
		case ctx.Err() != nil: // the next daemon answers
		case err == nil && unix.Errno(res.Errno) == unix.ESRCH:
			n.Errno(unix.ESRCH)
		default:
			n.Continue()
		}
	})
}

// threadKill answers tkill(tid, sig), tgkill(tgid, tid, sig) and
// rt_tgsigqueueinfo(tgid, tid, sig, info).
func (c *Calls) threadKill(n *seccomp.Notif) {
	var tgid unum.Pid
	args := n.Args[:]
	if n.Nr != unix.SYS_TKILL {
		tgid = unum.Pid(int32(args[0]))
		args = args[1:]
	}
	tid, sig := unum.Pid(int32(args[0])), int(int32(args[1]))
	// A body's first thread has its number: abort() and raise() come here.
	if tid <= 0 || c.own(tid) || c.here(n, tid) {
		n.Continue()
		return
	}
	c.go_(func(ctx context.Context) {
		c.killFar(ctx, n, &killReq{Pid: tid, Tgid: tgid, Sig: sig, Thread: true})
	})
}

// killFar hands a signal to the node where its target was born.
func (c *Calls) killFar(ctx context.Context, n *seccomp.Notif, req *killReq) {
	t, nested, err := c.caller(n)
	if err != nil || nested {
		n.Continue()
		return
	}
	req.From = senderOf(t)
	if n.Nr == unix.SYS_RT_SIGQUEUEINFO || n.Nr == unix.SYS_RT_TGSIGQUEUEINFO {
		at := n.Args[2]
		if n.Nr == unix.SYS_RT_TGSIGQUEUEINFO {
			at = n.Args[3]
		}
		var info sys.Siginfo
		if _, err := sys.ReadMem(n.Tid, at, info[:48]); err != nil {
			n.Errno(unix.EFAULT)
			return
		}
		// Nobody may pretend to be the kernel or kill() (man 2 rt_sigqueueinfo).
		if code := info.Code(); code >= 0 || code == -6 /* SI_TKILL */ {
			n.Errno(unix.EPERM)
			return
		}
		req.Info = info[:]
	}
	peer, err := c.home(req.Pid)
	if err != nil {
		n.Errno(unix.ESRCH)
		return
	}
	res, err := unum.Call[killRes](ctx, peer, "calls.kill", req)
	if err != nil {
		if ctx.Err() != nil {
			return // the next daemon answers
		}
		n.Errno(errno(err))
		return
	}
	if res.Errno != 0 {
		n.Errno(unix.Errno(res.Errno))
		return
	}
	n.Return(0)
}

// killDeputy sends a SIGSTOP to the body of a deputy of this node, past the
// deputy, or a SIGCONT to the deputy.
func (c *Calls) killDeputy(ctx context.Context, n *seccomp.Notif, pid unum.Pid, sig unix.Signal) {
	t, nested, err := c.caller(n)
	if err != nil || nested {
		n.Continue()
		return
	}
	host, err := c.cfg.World.ToHost(pid)
	if err != nil {
		n.Continue()
		return
	}
	target, err := sys.ReadTask(host)
	if err != nil {
		n.Errno(unix.ESRCH)
		return
	}
	s := senderOf(t)
	if !s.mayKill(target, sig) {
		n.Errno(unix.EPERM)
		return
	}
	if sig == unix.SIGCONT {
		err = c.send(ctx, target, sig, queued(sig, &s))
	} else {
		err = c.cfg.Placed.SignalBody(ctx, pid, sig, queued(sig, &s))
	}
	switch {
	case errors.Is(err, unum.ErrNoProcess):
		// It ends; it cannot be stopped any more.
		n.Return(0)
	case err != nil:
		n.Errno(errno(err))
	default:
		n.Return(0)
	}
}

// queued is the siginfo of a signal that came from another process: the kernel
// does not let the daemon pretend that process's kill, but it may say who sent
// it.
func queued(sig unix.Signal, s *Sender) *sys.Siginfo {
	return sys.MakeSiginfo(sig, siQueue, int32(s.Pid), int32(s.Uid))
}

// onKill delivers a signal to a process born here.
func (c *Calls) onKill(ctx context.Context, _ unum.NodeID, q *killReq) (*killRes, error) {
	return &killRes{int(errno(c.deliver(ctx, q)))}, nil
}

func (c *Calls) deliver(ctx context.Context, q *killReq) error {
	sig := unix.Signal(q.Sig)
	host, err := c.cfg.World.ToHost(q.Pid)
	if err != nil {
		return err
	}
	t, err := sys.ReadTask(host)
	if err != nil {
		return unix.ESRCH
	}
	if q.Tgid != 0 && q.Tgid != t.Pid {
		return unix.ESRCH
	}
	if q.Sig < 0 || q.Sig > 64 {
		return unix.EINVAL // only now: the kernel looks for the process first
	}
	_, away := c.cfg.Placed.Where(t.Pid)
	if !away && (c.cfg.Registry.Find(t.Tgid) != nil || t.Pid == 1) {
		return unix.ESRCH // an agent or a holder is nobody's business
	}
	if !q.From.mayKill(t, sig) {
		return unix.EPERM
	}
	if sig == 0 {
		return nil
	}
	info := queued(sig, &q.From)
	if len(q.Info) == len(info) {
		copy(info[:], q.Info)
	}
	if away && sig == unix.SIGSTOP {
		return c.cfg.Placed.SignalBody(ctx, t.Pid, sig, info)
	}
	if q.Thread && host != t.Tgid {
		return unix.Tgkill(t.Tgid, host, sig)
	}
	err = c.send(ctx, t, sig, info)
	if away && err == nil {
		c.cfg.Placed.HandedOn(ctx, t.Pid, sig)
	}
	return err
}

// send signals a process of this node. The kernel tells a receiver nothing
// about a sender outside of its PID namespace (send_signal_locked of
// kernel/signal.c), so it is the agent who sends, and says for whom.
func (c *Calls) send(ctx context.Context, t *sys.Task, sig unix.Signal, info *sys.Siginfo) error {
	p := &deputy.Program{}
	at := p.Do(unix.SYS_RT_SIGQUEUEINFO, uint64(t.Pid), uint64(sig), p.Bytes(info[:]), 0, 0, c.cfg.Cookie)
	res, err := c.cfg.Agent.Run(ctx, p)
	if err != nil {
		return err
	}
	switch ret := res.Rets[at]; {
	case ret < 0 && unix.Errno(-ret) != unix.EAGAIN:
		return unix.Errno(-ret)
	case ret < 0:
		err = bare(t, sig)
	}
	if sig == unix.SIGCONT && err == nil {
		c.cfg.Placed.Continued(t.Pid, info)
	}
	return err
}
