package rexec

import (
	"context"

	"golang.org/x/sys/unix"

	"unum"
	"unum/deputy"
)

// sessionAgent lets the carrier of terminals act from within a session.
type sessionAgent struct {
	agent  *deputy.Stub
	cookie uint64
}

// SetForeground makes pgid the foreground group of the session's terminal, or,
// if there is no such group here, the agent's own: then every body is in the
// background, as it is at home.
func (a *sessionAgent) SetForeground(ctx context.Context, pgid unum.Pid) error {
	p := &deputy.Program{}
	tty := p.Must(unix.SYS_OPENAT, atCwd, p.String("/dev/tty"), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY)
	// ioctl's first argument is the result of the open.
	want := p.Halves(uint32(pgid))
	set := p.DoRef(tty, unix.SYS_IOCTL, unix.TIOCSPGRP, want, 0, 0, a.cookie)
	p.MustRef(tty, unix.SYS_CLOSE)
	res, err := a.agent.Run(ctx, p)
	if err != nil {
		return err
	}
	if _, err := res.Err(); err != nil {
		return err
	}
	if res.Rets[set] == 0 {
		return nil
	}
	p = &deputy.Program{}
	tty = p.Must(unix.SYS_OPENAT, atCwd, p.String("/dev/tty"), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY)
	own := p.Halves(uint32(a.agent.Pid))
	p.MustRef(tty, unix.SYS_IOCTL, unix.TIOCSPGRP, own, 0, 0, a.cookie)
	p.MustRef(tty, unix.SYS_CLOSE)
	res, err = a.agent.Run(ctx, p)
	if err != nil {
		return err
	}
	_, err = res.Err()
	return err
}

// leader stands for a body that leads its session: it is no agent, and sets
// the foreground group of its terminal itself.
type leader struct{}

func (leader) SetForeground(context.Context, unum.Pid) error { return nil }
