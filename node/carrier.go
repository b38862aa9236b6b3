package node

import (
	"context"
	"fmt"
	"path/filepath"

	"unum/carry"
	"unum/carry/file"
	"unum/carry/pipe"
	"unum/carry/tty"
	"unum/deputy"
)

// carrier is every kind of descriptor that this node carries.
type carrier struct {
	set   *carry.Set
	fs    *file.FS
	files *file.Kinds
	pipes *pipe.Carrier
	tty   *tty.Kind
}

func newCarrier(ctx context.Context, d *Daemon, stub *deputy.Stub) (*carrier, error) {
	keeper, err := deputy.NewKeeper(ctx, stub, filepath.Join(d.cfg.StateDir(), "kept"))
	if err != nil {
		return nil, err
	}
	env := &carry.Env{
		Node: d.cfg.Node, Log: d.log, Keeper: keeper, StateDir: d.cfg.StateDir(),
		Peer: d.peer, Handle: d.wire.Handle, Accept: d.wire.Accept,
		WorldPids: d.world.HostPids,
		Deputy:    func(host int) bool { return d.stubs.Find(host) != nil },
		Release: func(ctx context.Context, pl carry.Placement, nums []int) error {
			return d.rexec.CloseInDeputy(ctx, pl, nums)
		},
	}
	c := &carrier{}
	c.fs = file.NewFS(file.FSConfig{
		Log: d.log, Socket: file.SocketPath(d.cfg.StateDir()), Peer: d.peer,
	})
	c.files = file.New(file.Config{
		Env: env, FS: c.fs,
		Root:    func() string { return fmt.Sprintf("/proc/%d/root", d.world.Pid1HostPid()) },
		Outside: d.outside.has,
		ManyReaders: func(ctx context.Context, p *carry.Proc, fd *carry.FD) (bool, error) {
			sole, err := c.pipes.SoleReader(p, fd)
			return !sole, err
		},
	})
	if c.pipes, err = pipe.New(env); err != nil {
		return nil, err
	}
	c.tty, err = tty.New(tty.Config{
		Env:    *env,
		Devpts: func() (string, error) { return fmt.Sprintf("/proc/%d/root/dev/pts", d.world.Pid1HostPid()), nil },
	})
	if err != nil {
		return nil, err
	}
	all := c.files.All()
	stream := all[len(all)-1]
	kinds := append([]carry.Kind{}, all[:len(all)-1]...)
	kinds = append(kinds, c.tty, c.pipes.Read(), c.pipes.Write(), stream)
	c.set = carry.NewSet(kinds...)
	return c, nil
}

func (c *carrier) close() {
	c.tty.Close()
	c.pipes.Close()
	c.files.Close()
	c.fs.Close()
}
