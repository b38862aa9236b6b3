package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"unum"
	"unum/ctl"
	"unum/rexec"
	"unum/sched"
)

// startControl opens the control socket.
func (d *Daemon) startControl() (err error) {
	if d.logs, err = ctl.OpenLogs(filepath.Join(d.cfg.StateDir(), "logs")); err != nil {
		return err
	}
	d.wire.Handle("ctl.ps", d.handlePs)
	d.wire.Handle("ctl.why", d.handleWhy)
	d.wire.Handle("ctl.logs", d.handleLogs)
	d.ctl, err = ctl.Listen(ctl.ServerConfig{Path: d.cfg.Control(), Backend: backend{d}, Logs: d.logs, Log: d.log})
	return err
}

// backend is the daemon as the control socket sees it.
type backend struct{ d *Daemon }

func (b backend) CheckNode(ctx context.Context, id unum.NodeID) error {
	if !b.d.members.Settled(string(id)) {
		b.d.members.Settle(ctx, string(id))
	}
	n, known := find(b.d.members.View().Nodes, id)
	switch {
	case !known:
		return &unum.Error{Op: "run", Node: id, Err: unum.ErrNoNode}
	case n.State == unum.Down || n.State == unum.Left:
		return &unum.Error{Op: "run", Node: id, Err: unum.ErrNodeLost}
	case n.State == unum.Joining:
		return &unum.Error{Op: "run", Node: id, Err: fmt.Errorf("it is %s and %w", n.State, sched.ErrNotTaking)}
	}
	return nil
}

// OpenTTY opens a terminal of the world's own devpts.
func (b backend) OpenTTY(context.Context) (master, slave *os.File, err error) {
	open := func(path string, flags int) (*os.File, error) {
		fd, err := unix.Openat(int(b.d.root.Fd()), path, flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		if err != nil {
			return nil, &unum.Error{Op: "open a terminal", Path: "/" + path, Err: err}
		}
		return os.NewFile(uintptr(fd), "/"+path), nil
	}
	if master, err = open("dev/pts/ptmx", unix.O_RDWR); err != nil {
		return nil, nil, err
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		master.Close()
		return nil, nil, &unum.Error{Op: "unlock a terminal", Err: err}
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		master.Close()
		return nil, nil, &unum.Error{Op: "number of a terminal", Err: err}
	}
	if slave, err = open(fmt.Sprintf("dev/pts/%d", n), unix.O_RDWR); err != nil {
		master.Close()
		return nil, nil, err
	}
	return master, slave, nil
}

func (b backend) Start(ctx context.Context, c ctl.Caller, cmd *ctl.Command) (unum.Pid, error) {
	if cmd.TTY && cmd.Uid != 0 {
		// As a login gives the terminal to its user.
		if f := cmd.Files[0]; f != nil {
			f.Chown(int(cmd.Uid), -1)
		}
	}
	rc := &rexec.Command{
		ID: cmd.ID, Argv: cmd.Argv, Env: cmd.Env, Dir: cmd.Dir, Umask: cmd.Umask, Nice: cmd.Nice,
		Uid: cmd.Uid, Gid: cmd.Gid, Groups: cmd.Groups,
		NoNewPrivs: cmd.NoNewPrivs, CapBnd: cmd.CapBounding,
		Files: cmd.Files, TTY: cmd.TTY, Limits: map[int]unix.Rlimit{},
	}
	for _, f := range cmd.Files {
		if id, ok := lent(f); ok {
			rc.Lent = append(rc.Lent, id)
		}
	}
	b.d.outside.add(rc.Lent)
	for _, l := range cmd.Rlimits {
		rc.Limits[l.Resource] = unix.Rlimit{Cur: l.Soft, Max: l.Max}
	}
	return b.d.rexec.Runs.Start(ctx, rc)
}

func (b backend) owned(c ctl.Caller, pid unum.Pid) error {
	uid, err := b.d.rexec.Runs.Owner(pid)
	if err != nil {
		return err
	}
	if !c.May(uid) {
		return unum.ErrDenied
	}
	return nil
}

func (b backend) Started(ctx context.Context, c ctl.Caller, id string) (unum.Pid, error) {
	pid, err := b.d.rexec.Runs.Started(ctx, id)
	if err != nil {
		return 0, err
	}
	return pid, b.owned(c, pid)
}

func (b backend) Wait(ctx context.Context, c ctl.Caller, pid unum.Pid) (ctl.Exit, error) {
	if err := b.owned(c, pid); err != nil {
		return ctl.Exit{}, err
	}
	e, err := b.d.rexec.Runs.Wait(ctx, pid)
	return ctl.Exit{Code: e.Code, Signal: e.Signal, Core: e.Core}, err
}

func (b backend) Found(ctx context.Context) ([]unum.Pid, error) { return b.d.rexec.Runs.Found(ctx) }

func (b backend) Release(pid unum.Pid) { b.d.rexec.Runs.Release(pid) }

func (b backend) Signal(ctx context.Context, c ctl.Caller, pid unum.Pid, sig unix.Signal) error {
	if err := b.owned(c, pid); err != nil {
		return err
	}
	host, err := b.d.rexec.Runs.HostPid(pid)
	if err != nil {
		return err
	}
	// The process leads its group; its PID is held by its agent until reaped.
	return unix.Kill(-host, sig)
}

func (b backend) Nodes(context.Context, ctl.Caller) ([]ctl.Node, error) {
	var out []ctl.Node
	for _, n := range b.d.members.View().Nodes {
		out = append(out, ctl.Node{
			ID: n.ID, State: n.State, Addr: n.Addr, Self: n.ID == b.d.cfg.Node, Voter: n.Voter,
			Version: n.Version, Load: n.Load, Epoch: n.Epoch,
		})
	}
	return out, nil
}
