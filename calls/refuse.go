package calls

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"unum"
	"unum/seccomp"
	"unum/sys"
)

// Until the cluster has one address and one set of IPC objects, a process that
// was placed, or descends from one that was, must not silently use those of its
// guest: what only home has is refused, told to home, and its command stays
// there from then on.

// placed says whether a process came here by a placement.
func (c *Calls) placed(t *sys.Task) bool { return !c.own(t.Sid) || !c.own(t.Pid) }

// refusedReq tells the node that placed a process what it could not have.
type refusedReq struct {
	Pid    unum.Pid // the body
	Text   string
	Forbid string // why the command stays home, or ""
}

func (c *Calls) onRefused(_ context.Context, _ unum.NodeID, q *refusedReq) (*struct{}, error) {
	c.cfg.Placed.Note(q.Pid, q.Text)
	if q.Forbid != "" {
		c.cfg.Placed.Forbid(q.Pid, q.Forbid)
	}
	return &struct{}{}, nil
}

// note remembers something about a process for `unum why`, here and at home.
func (c *Calls) note(ctx context.Context, t *sys.Task, text string) { c.refused(ctx, t, text, "") }

func (c *Calls) refused(ctx context.Context, t *sys.Task, text, forbid string) {
	text = fmt.Sprintf("on %s: %s", c.cfg.Node, text)
	c.log.Warn("a call of a process", "pid", t.Pid, "comm", t.Comm, "what", text)
	pid := c.bodyOf(t)
	id, ok := c.cfg.Placed.Home(pid)
	if pid != t.Pid || !ok {
		c.cfg.Placed.Note(t.Pid, text)
	}
	if !ok {
		return
	}
	peer, err := c.cfg.Peer(id)
	if err == nil {
		_, err = unum.Call[struct{}](ctx, peer, "calls.refused", &refusedReq{pid, text, forbid})
	}
	if err != nil {
		c.log.Warn("tell home", "pid", pid, "node", id, "err", err)
	}
}

// bodyOf returns the body that a process of this node is or descends from; 0
// if that has ended.
func (c *Calls) bodyOf(t *sys.Task) unum.Pid {
	bodies := map[int]unum.Pid{}
	for pid, host := range c.cfg.Placed.Bodies() {
		bodies[host] = pid
	}
	for host := t.Tgid; host > 1; {
		if pid, ok := bodies[host]; ok {
			return pid
		}
		b, err := sys.ReadBirth(host)
		if err != nil {
			return 0
		}
		host = b.Ppid
	}
	return 0
}

// socket answers connect, bind and listen.
func (c *Calls) socket(n *seccomp.Notif) {
	if !c.cfg.Placed.Hosts() {
		n.Continue()
		return
	}
	if n.Nr == unix.SYS_BIND {
		n.Continue()
		return
	}
	c.go_(func(ctx context.Context) {
		t, nested, err := c.caller(n)
		if err != nil || nested || !c.placed(t) {
			n.Continue()
			return
		}
		if n.Nr == unix.SYS_LISTEN {
			n.Continue()
			c.note(ctx, t, "it listens, and only processes of that node can connect")
			return
		}
		c.connect(ctx, n, t)
	})
}

func (c *Calls) connect(ctx context.Context, n *seccomp.Notif, t *sys.Task) {
	b := make([]byte, min(n.Args[2], 128))
	if _, err := sys.ReadMem(n.Tid, n.Args[1], b); err != nil {
		n.Continue()
		return
	}
	e := parseAddr(b)
	if e.Kind == 0 {
		n.Continue()
		return
	}
	e.datagram(n)
	if e.Kind == pathSocket {
		if !lists(n.Tid, e.Name) {
			c.refused(ctx, t, "no process of that node listens on "+e.Name, "its clients of "+e.Name+" find it only there")
			n.Errno(unix.ECONNREFUSED)
			return
		}
		n.Continue()
		return
	}
	if yes, err := c.listens(&e); err != nil || yes {
		n.Continue() // it may be another one than home's: the nearest is taken
		return
	}
	home := c.askListens(ctx, t.Sid, &e)
	if ctx.Err() != nil {
		return
	}
	if home {
		c.refused(ctx, t, fmt.Sprintf("%s is open at home, not there", &e), fmt.Sprintf("it connects to %s", &e))
	}
	if home && e.Kind == udp {
		n.Errno(unix.ECONNREFUSED) // of itself it would just get no answer
		return
	}
	n.Continue()
}

// sysv answers shmget, semget, msgget and mq_open. What exists here is given;
// what would have to be made here would be another object than home's.
func (c *Calls) sysv(n *seccomp.Notif) {
	key, flags := int32(n.Args[0]), n.Args[2]
	switch n.Nr {
	case unix.SYS_MSGGET, unix.SYS_MQ_OPEN:
		flags = n.Args[1]
	}
	mq := n.Nr == unix.SYS_MQ_OPEN
	create := flags&unix.O_CREAT != 0 && mq || flags&ipcCreat != 0 && !mq
	if !mq && key == 0 || !c.cfg.Placed.Hosts() {
		n.Continue()
		return
	}
	c.go_(func(ctx context.Context) {
		t, nested, err := c.caller(n)
		if err != nil || nested || !c.placed(t) || mq && !create {
			n.Continue()
			return
		}
		e := endpoint{Kind: message, Name: "a message queue"}
		if mq {
			if name, err := sys.ReadString(n.Tid, n.Args[0], 256); err == nil {
				e.Name = "message queue " + name
			}
		} else {
			e = endpoint{Kind: ipcKind(n.Nr), Key: key}
			if yes, err := c.listens(&e); err != nil || yes {
				n.Continue()
				return
			}
		}
		if !create {
			home := c.askListens(ctx, t.Sid, &e)
			if home {
				c.refused(ctx, t, fmt.Sprintf("%s exists at home, not there", &e), fmt.Sprintf("it uses %s", &e))
			}
			if ctx.Err() == nil {
				n.Continue()
			}
			return
		}
		c.refused(ctx, t, fmt.Sprintf("%s cannot be made for the whole cluster yet", &e), fmt.Sprintf("it uses %s", &e))
		n.Errno(unix.ENOSPC)
	})
}

const ipcCreat = 0o1000 // IPC_CREAT

func ipcKind(nr uint32) kind {
	switch nr {
	case unix.SYS_SHMGET:
		return shm
	case unix.SYS_SEMGET:
		return sem
	}
	return msg
}

// askListens asks the node where a session began.
func (c *Calls) askListens(ctx context.Context, sid unum.Pid, e *endpoint) bool {
	peer, err := c.home(sid)
	if err != nil {
		return false
	}
	res, err := unum.Call[listensRes](ctx, peer, "calls.listens", e)
	return err == nil && res.Yes
}

type listensRes struct{ Yes bool }

// onListens says whether this node has an open port, a name or a key.
func (c *Calls) onListens(_ context.Context, _ unum.NodeID, e *endpoint) (*listensRes, error) {
	yes, err := c.listens(e)
	return &listensRes{yes}, err
}
