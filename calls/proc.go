package calls

import (
	"context"
	"encoding/binary"

	"golang.org/x/sys/unix"

	"unum"
	"unum/seccomp"
	"unum/sys"
)

// procReq is a call about a process of another node, to be made where it runs.
type procReq struct {
	From Sender
	Pid  unum.Pid
	Nr   uint32
	Arg  int    // resource, policy or priority
	Size int    // of what it returns
	In   []byte // what the caller's pointer holds; nil: nothing is set
	Want bool   // prlimit: the old limits are asked for
}

type procRes struct {
	Errno int
	Ret   int64
	Out   []byte
}

// pidArg is which argument of a call is a PID.
func pidArg(n *seccomp.Notif) unum.Pid {
	switch n.Nr {
	case unix.SYS_PTRACE, unix.SYS_GETPRIORITY, unix.SYS_SETPRIORITY, unix.SYS_IOPRIO_GET, unix.SYS_IOPRIO_SET:
		return unum.Pid(int32(n.Args[1]))
	}
	return unum.Pid(int32(n.Args[0]))
}

// proc answers the calls about one process that does not run here, as its
// number or what is known of its placements tells.
func (c *Calls) proc(n *seccomp.Notif) {
	pid := pidArg(n)
	if pid <= 0 || c.own(pid) && !aboutBody(n.Nr) {
		n.Continue()
		return
	}
	next, away := unum.NodeID(""), false
	if aboutBody(n.Nr) {
		next, away = c.cfg.Placed.Where(pid)
	}
	if !away && (c.own(pid) || c.here(n, pid)) {
		n.Continue()
		return
	}
	switch n.Nr {
	case unix.SYS_GETPRIORITY, unix.SYS_SETPRIORITY:
		if n.Args[0] != unix.PRIO_PROCESS {
			n.Continue() // groups and users: what is here of them
			return
		}
	case unix.SYS_IOPRIO_GET, unix.SYS_IOPRIO_SET:
		if n.Args[0] != ioprioProcess {
			n.Continue()
			return
		}
	case unix.SYS_PTRACE:
		if req := n.Args[0]; req != unix.PTRACE_ATTACH && req != unix.PTRACE_SEIZE {
			n.Continue() // about a tracee, which is here or not at all
			return
		}
	}
	c.go_(func(ctx context.Context) {
		to := func() (unum.Peer, error) { return c.home(pid) }
		if away {
			to = func() (unum.Peer, error) { return c.cfg.Peer(next) }
		}
		c.procFar(ctx, n, pid, to)
	})
}

// Sizes of struct sched_param, timespec and, in its first version, sched_attr.
const (
	sizeofParam    = 4
	sizeofTimespec = 16
	sizeofAttr0    = 48
)

// ioprioProcess is IOPRIO_WHO_PROCESS.
const ioprioProcess = 1

// aboutBody says of a trapped call that it is about the process that runs, and
// so never about a deputy.
func aboutBody(nr uint32) bool {
	switch nr {
	case unix.SYS_PRLIMIT64, unix.SYS_GETPRIORITY, unix.SYS_SETPRIORITY, unix.SYS_IOPRIO_GET, unix.SYS_IOPRIO_SET,
		unix.SYS_SCHED_SETAFFINITY, unix.SYS_SCHED_GETAFFINITY,
		unix.SYS_SCHED_SETSCHEDULER, unix.SYS_SCHED_GETSCHEDULER,
		unix.SYS_SCHED_SETPARAM, unix.SYS_SCHED_GETPARAM,
		unix.SYS_SCHED_SETATTR, unix.SYS_SCHED_GETATTR, unix.SYS_SCHED_RR_GET_INTERVAL:
		return true
	}
	return false
}

func (c *Calls) procFar(ctx context.Context, n *seccomp.Notif, pid unum.Pid, to func() (unum.Peer, error)) {
	t, nested, err := c.caller(n)
	if err != nil || nested {
		n.Continue()
		return
	}
	req := &procReq{From: senderOf(t), Pid: pid, Nr: n.Nr}
	var in, out uint64
	switch n.Nr {
	case unix.SYS_PRLIMIT64:
		req.Arg, req.Size, in, out = int(n.Args[1]), 16, n.Args[2], n.Args[3]
	case unix.SYS_GETPRIORITY, unix.SYS_IOPRIO_GET, unix.SYS_SCHED_GETSCHEDULER:
	case unix.SYS_SETPRIORITY, unix.SYS_IOPRIO_SET:
		req.Arg = int(int32(n.Args[2]))
	case unix.SYS_SCHED_SETAFFINITY:
		req.Size, in = int(min(n.Args[1], 128)), n.Args[2]
	case unix.SYS_SCHED_GETAFFINITY:
		req.Size, out = int(min(n.Args[1], 128)), n.Args[2]
	case unix.SYS_SCHED_SETSCHEDULER:
		req.Arg, req.Size, in = int(int32(n.Args[1])), sizeofParam, n.Args[2]
	case unix.SYS_SCHED_SETPARAM:
		req.Size, in = sizeofParam, n.Args[1]
	case unix.SYS_SCHED_GETPARAM:
		req.Size, out = sizeofParam, n.Args[1]
	case unix.SYS_SCHED_GETATTR:
		req.Size, out = int(uint32(n.Args[2])), n.Args[1]
		if req.Size < sizeofAttr0 || req.Size > 4096 || n.Args[3] != 0 {
			n.Errno(unix.EINVAL)
			return
		}
	case unix.SYS_SCHED_SETATTR:
		in = n.Args[1]
		var size [4]byte
		if _, err := sys.ReadMem(n.Tid, in, size[:]); err != nil {
			n.Errno(unix.EFAULT)
			return
		}
		req.Size = int(min(binary.LittleEndian.Uint32(size[:]), unix.SizeofSchedAttr))
		if req.Size == 0 {
			req.Size = sizeofAttr0
		}
		if req.Size < sizeofAttr0 {
			n.Errno(unix.E2BIG)
			return
		}
	case unix.SYS_SCHED_RR_GET_INTERVAL:
		req.Size, out = sizeofTimespec, n.Args[1]
	default:
		c.cannot(ctx, n, t, pid)
		return
	}
	switch n.Nr {
	case unix.SYS_SCHED_SETSCHEDULER, unix.SYS_SCHED_SETPARAM, unix.SYS_SCHED_GETPARAM, unix.SYS_SCHED_GETATTR, unix.SYS_SCHED_SETATTR:
		if in|out == 0 {
			n.Errno(unix.EINVAL)
			return
		}
	}
	if in != 0 {
		req.In = make([]byte, req.Size)
		if _, err := sys.ReadMem(n.Tid, in, req.In); err != nil {
			n.Errno(unix.EFAULT)
			return
		}
	}
	req.Want = out != 0
	peer, err := to()
	if err != nil {
		n.Errno(unix.ESRCH)
		return
	}
	res, err := unum.Call[procRes](ctx, peer, "calls.proc", req)
	switch {
	case ctx.Err() != nil:
		return
	case err != nil:
		n.Errno(errno(err))
		return
	case res.Errno != 0:
		n.Errno(unix.Errno(res.Errno))
		return
	}
	if out != 0 && len(res.Out) > 0 {
		if err := sys.WriteMem(n.Tid, sys.Piece{Addr: out, Data: res.Out}); err != nil {
			n.Errno(unix.EFAULT)
			return
		}
	}
	n.Return(res.Ret)
}

// cannot refuses what does not reach another node. pidfd_open says ENOSYS, on
// which programs fall back to numbers.
func (c *Calls) cannot(ctx context.Context, n *seccomp.Notif, t *sys.Task, pid unum.Pid) {
	res := c.askIDs(ctx, pid)
	switch {
	case ctx.Err() != nil:
		return
	case res == nil || !res.Found:
		n.Errno(unix.ESRCH)
	case n.Nr == unix.SYS_PIDFD_OPEN:
		n.Errno(unix.ENOSYS)
	default:
		i, _ := unum.IndexOf(pid)
		at, _ := c.cfg.NodeOf(i)
		c.note(ctx, t, "cannot trace "+pid.String()+", which is a process of "+string(at))
		n.Errno(unix.EPERM)
	}
}

// onProc makes such a call here, or passes it on to where the body is.
func (c *Calls) onProc(ctx context.Context, _ unum.NodeID, q *procReq) (*procRes, error) {
	if id, away := c.cfg.Placed.Where(q.Pid); away {
		peer, err := c.cfg.Peer(id)
		if err != nil {
			return nil, err
		}
		return unum.Call[procRes](ctx, peer, "calls.proc", q)
	}
	res := &procRes{}
	if err := c.onProcHere(q, res); err != nil {
		res.Errno = int(errno(err))
	}
	return res, nil
}

func (c *Calls) onProcHere(q *procReq, res *procRes) error {
	host, err := c.cfg.World.ToHost(q.Pid)
	if err != nil {
		return err
	}
	t, err := sys.ReadTask(host)
	if err != nil || c.cfg.Registry.Find(t.Tgid) != nil || t.Pid == 1 {
		return unix.ESRCH
	}
	switch q.Nr {
	case unix.SYS_PRLIMIT64:
		return c.prlimit(q, t, res)
	case unix.SYS_GETPRIORITY:
		v, err := unix.Getpriority(unix.PRIO_PROCESS, host)
		res.Ret = int64(v) // 20−nice, as the call returns it
		return err
	case unix.SYS_SETPRIORITY:
		if !q.From.mayRenice(t) {
			return unix.EPERM
		}
		if q.Arg < t.Nice && !q.From.has(unix.CAP_SYS_NICE) {
			return unix.EACCES
		}
		return unix.Setpriority(unix.PRIO_PROCESS, host, q.Arg)
	case unix.SYS_IOPRIO_GET:
		v, err := sys.IOPrio(host)
		res.Ret = int64(v)
		return err
	case unix.SYS_IOPRIO_SET:
		const classShift, classRT = 13, 1
		if !q.From.mayRenice(t) || q.Arg>>classShift == classRT && !q.From.has(unix.CAP_SYS_NICE) {
			return unix.EPERM
		}
		return sys.SetIOPrio(host, q.Arg)
	case unix.SYS_SCHED_GETSCHEDULER, unix.SYS_SCHED_GETPARAM, unix.SYS_SCHED_GETATTR, unix.SYS_SCHED_RR_GET_INTERVAL:
		res.Out = make([]byte, q.Size)
		res.Ret, err = sys.Sched(q.Nr, host, 0, res.Out)
		return err
	case unix.SYS_SCHED_SETSCHEDULER, unix.SYS_SCHED_SETPARAM, unix.SYS_SCHED_SETATTR:
		if len(q.In) < sizeofParam || !q.From.maySchedule(t, q) {
			return unix.EPERM
		}
		res.Ret, err = sys.Sched(q.Nr, host, q.Arg, q.In)
		return err
	case unix.SYS_SCHED_GETAFFINITY:
		res.Out = make([]byte, q.Size)
		res.Ret, err = sys.SchedGetaffinity(host, res.Out)
		if err == nil {
			res.Out = res.Out[:res.Ret]
		}
		return err
	case unix.SYS_SCHED_SETAFFINITY:
		if !q.From.mayRenice(t) {
			return unix.EPERM
		}
		return sys.SchedSetaffinity(host, q.In)
	}
	return unix.ENOSYS
}

func (c *Calls) prlimit(q *procReq, t *sys.Task, res *procRes) error {
	if !q.From.mayLimit(t) {
		return unix.EPERM
	}
	var old unix.Rlimit
	if err := unix.Prlimit(t.Tgid, q.Arg, nil, &old); err != nil {
		return err
	}
	if q.Want {
		res.Out = putRlimit(old)
	}
	if len(q.In) == 0 {
		return nil
	}
	lim, err := getRlimit(q.In)
	if err != nil {
		return err
	}
	if lim.Cur > lim.Max {
		return unix.EINVAL
	}
	if lim.Max > old.Max && !q.From.has(unix.CAP_SYS_RESOURCE) {
		return unix.EPERM
	}
	return unix.Prlimit(t.Tgid, q.Arg, &lim, nil)
}
