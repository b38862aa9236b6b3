package calls

import (
	"context"
	"encoding/binary"

	"golang.org/x/sys/unix"

	"unum"
	"unum/seccomp"
	"unum/sys"
)

// terminal answers TIOCSPGRP, TIOCSCTTY and TIOCNOTTY.
//
// At home a new foreground group is told to the guests of the session, once it
// is in effect. On a guest the terminal is the carrier's, and groups that were
// made here matter here only; a group of home's is made the foreground at home
// as well.
func (c *Calls) terminal(n *seccomp.Notif) {
	if n.Args[1] == unix.TIOCSCTTY {
		n.Continue()
		return
	}
	c.forCaller(n, func(ctx context.Context, t *sys.Task) {
		_, placed := c.cfg.Placed.Home(t.Pid)
		placed = placed && !c.own(t.Pid)
		if n.Args[1] == unix.TIOCNOTTY {
			if placed {
				c.mirrorQuietly(ctx, &mirrorReq{Pid: t.Pid, Op: mirrorNoTTY})
			}
			n.Continue()
			return
		}
		if placed {
			if pgid := readPgid(n); pgid > 0 && !c.own(pgid) {
				c.mirrorQuietly(ctx, &mirrorReq{Pid: t.Pid, Op: mirrorForeground, Arg: pgid})
			}
			n.Continue()
			return
		}
		// Only the guests of the group are told: the news that another group is
		// not in the foreground any more could arrive after the start of a job
		// that is. A stopped job learns what it has missed when it is continued.
		pgid := readPgid(n)
		if !c.own(t.Sid) || !c.cfg.Placed.PlacedGroup(pgid) {
			n.Continue()
			return
		}
		c.finish(n, func(ret int64) {
			if ret == 0 {
				c.cfg.Placed.SyncTerminal(ctx, pgid)
			}
		})
	})
}

func (c *Calls) mirrorQuietly(ctx context.Context, q *mirrorReq) {
	if _, err := c.mirror(ctx, q); err != nil && ctx.Err() == nil {
		c.log.Warn("mirror at home", "pid", q.Pid, "op", q.Op, "err", err)
	}
}

func readPgid(n *seccomp.Notif) unum.Pid {
	var b [4]byte
	if _, err := sys.ReadMem(n.Tid, n.Args[2], b[:]); err != nil {
		return 0
	}
	return unum.Pid(binary.LittleEndian.Uint32(b[:]))
}
