package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"unum"
	"unum/deputy"
	"unum/rexec"
	"unum/seccomp"
	"unum/sys"
	"unum/world"
	"unum/world/cgroup"
)

// freshFile is there from when a world was not found until the cluster knows
// that what ran in it is dead: the daemon may die in between, and the next one
// find the new world.
const freshFile = "fresh"

// findWorld finds the world that a daemon before this one left. fresh says that
// the others do not know yet that the one before it is gone.
func (d *Daemon) findWorld(ctx context.Context) (fresh bool, err error) {
	cfg, err := d.worldConfig()
	if err != nil {
		return false, err
	}
	mark := filepath.Join(d.cfg.StateDir(), freshFile)
	d.world, err = world.Attach(ctx, cfg)
	switch {
	case err == nil:
		_, err := os.Stat(mark)
		return err == nil, nil
	case !errors.Is(err, unum.ErrNoProcess):
		return false, err
	}
	d.world = nil
	if err := d.forget(); err != nil {
		return false, err
	}
	return true, os.WriteFile(mark, nil, 0o600)
}

// known is called when the cluster knows of the new world.
func (d *Daemon) known() error { return os.Remove(filepath.Join(d.cfg.StateDir(), freshFile)) }

// startWorld makes a world unless one was found.
func (d *Daemon) startWorld(ctx context.Context) (err error) {
	if d.world == nil {
		cfg, err := d.worldConfig()
		if err != nil {
			return err
		}
		if d.world, err = world.Start(ctx, cfg); err != nil {
			return err
		}
	}
	d.root, err = os.OpenFile(fmt.Sprintf("/proc/%d/root", d.world.Pid1HostPid()), unix.O_PATH|unix.O_DIRECTORY, 0)
	return err
}

func (d *Daemon) worldConfig() (world.Config, error) {
	r := unum.RangeOf(d.cfg.Index)
	filter, err := seccomp.Filter(seccomp.Params{Range: r, Cookie: d.cookie})
	return world.Config{
		Node: d.cfg.Node, Hostname: d.cfg.Hostname, Range: r,
		Root: d.cfg.Root, RunDir: d.cfg.RunDir, PubDir: d.cfg.PubDir(),
		Cgroup: cgroup.Open(d.cfg.CgroupPath),
		Stub:   deputy.ELF(), Filter: filter, Cookie: d.cookie, Log: d.log,
	}, err
}

// forget removes what is known of a world that has ended.
func (d *Daemon) forget() error {
	stay := []string{"cookie", "alive", "logs", "etcd", "etcd-run", "fs.sock"}
	dir := d.cfg.StateDir()
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if slices.Contains(stay, e.Name()) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// startPlacement begins to answer the world's trapped calls.
func (d *Daemon) startPlacement(ctx context.Context) error {
	d.stubs = deputy.NewRegistry(d.log)
	// The listener takes its file over; the world keeps one of its own.
	fd, err := unix.FcntlInt(d.world.Listener().Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	d.listener, err = seccomp.NewListener(os.NewFile(uintptr(fd), "seccomp"), filepath.Join(d.cfg.StateDir(), "calls"), d.log)
	if err != nil {
		return err
	}
	d.calls = newDispatcher(d)
	serve := func() {
		d.wg.Go(func() {
			err := d.listener.Serve(d.calls.handle)
			d.log.Info("the world's calls end", "err", err)
			d.calls.close()
		})
	}
	root, err := d.rootAgent(ctx, serve)
	if err != nil {
		return err
	}
	stub, err := stubFile()
	if err != nil {
		return err
	}
	cfg := rexec.Config{
		Node: d.cfg.Node, Index: d.cfg.Index, Cookie: d.cookie, Log: d.log, StateDir: d.cfg.StateDir(),
		Registry: d.stubs, Root: root,
		Peer: d.peer, Quick: d.quick, Place: d.calls.place, Finished: d.finished, Failed: d.failed,
		Settled: d.members.Settled, Settle: d.members.Settle, Alone: d.members.Alone,
		NodeAt:  d.members.At,
		Account: d.account, Reaped: d.reaped,
		WorldPids: d.world.HostPids, ToHost: d.world.ToHost, WorldRoot: d.root,
	}
	keeper, err := d.agent("keeper", func() (*deputy.Stub, error) { return rexec.NewAgent(ctx, cfg) })
	if err != nil {
		return err
	}
	if d.carrier, err = newCarrier(ctx, d, keeper); err != nil {
		return err
	}
	cfg.Carry, cfg.Terminal, cfg.Mount = d.carrier.set, d.carrier.tty, d.carrier.fs.Mount
	if d.rexec, err = rexec.New(cfg, stub); err != nil {
		return err
	}
	cs, err := newCalls(d, root)
	if err != nil {
		return err
	}
	d.calls.calls = cs
	if err := d.rexec.Recover(ctx); err != nil {
		return err
	}
	d.outside.add(d.rexec.Runs.Lent())
	d.carrier.files.Resumed()
	d.rexec.Register(d.wire.Handle)
	cs.Register(d.wire.Handle)
	d.wire.Ready()
	d.calls.open(d.rexec)
	return nil
}

// rootAgent makes the root agent, or finds it again.
func (d *Daemon) rootAgent(ctx context.Context, serve func()) (*deputy.Stub, error) {
	served := false
	s, err := d.agent("root-agent", func() (*deputy.Stub, error) {
		served = true
		return rexec.RootAgent(ctx, d.stubs, d.world.Pid1HostPid(), unum.RangeOf(d.cfg.Index), world.LastPidFD, serve)
	})
	if !served && err == nil {
		serve()
	}
	return s, err
}

// agent finds the stub that a daemon before this one made under a name, or
// makes it. Its number stands in a file of that name.
func (d *Daemon) agent(name string, create func() (*deputy.Stub, error)) (*deputy.Stub, error) {
	file := filepath.Join(d.cfg.StateDir(), name)
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		s, err := create()
		if err != nil {
			return nil, err
		}
		return s, os.WriteFile(file, []byte(strconv.Itoa(s.HostPid)), 0o600)
	}
	if err != nil {
		return nil, err
	}
	host, err := strconv.Atoi(string(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	pid, err := sys.WorldPid(host)
	if err != nil {
		return nil, fmt.Errorf("the %s is gone: %w", name, err)
	}
	s, err := d.stubs.Adopt(host, pid)
	if err == nil {
		s.OnSignal(nil)
	}
	return s, err
}

// stubFile is the deputy's executable, which callers are given. It is sealed,
// and executable by everybody.
func stubFile() (*os.File, error) {
	const sealed = unix.F_SEAL_SEAL | unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(rexec.StubName, flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before 6.3 every memfd is executable
		fd, err = unix.MemfdCreate(rexec.StubName, flags)
	}
	if err != nil {
		return nil, err
	}
	w := os.NewFile(uintptr(fd), rexec.StubName)
	if _, err := w.Write(deputy.ELF()); err != nil {
		return nil, err
	}
	if err := w.Chmod(0o755); err != nil {
		return nil, err
	}
	if _, err := unix.FcntlInt(w.Fd(), unix.F_ADD_SEALS, sealed); err != nil {
		return nil, err
	}
	// An open for writing would make the exec fail with ETXTBSY.
	r, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", w.Fd()))
	w.Close()
	return r, err
}
