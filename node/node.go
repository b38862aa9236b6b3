// Package node is the daemon: the one room that knows the cluster and every
// mechanism, and joins them.
package node

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/ctl"
	"unum/deputy"
	"unum/node/config"
	"unum/node/supervise"
	"unum/rexec"
	"unum/sched"
	"unum/seccomp"
	"unum/sys"
	"unum/wire"
	"unum/world"
)

// Daemon is one node's daemon.
type Daemon struct {
	cfg *config.Config
	log *slog.Logger
	inc unum.Incarnation

	members *members
	wire    *wire.Endpoint
	world   *world.World
	root    *os.File // the world's root directory
	cookie  uint64

	stubs    *deputy.Registry
	listener *seccomp.Listener
	rexec    *rexec.Service
	calls    *dispatcher
	carrier  *carrier
	outside  outside
	ctl      *ctl.Server
	logs     *ctl.LogStore

	schedMu sync.Mutex
	sched   *sched.Scheduler

	wg sync.WaitGroup
}

// monitorLate is how late Go's monitor thread may wake here. At 2 ms it used a
// fifth of the daemon's time under a build, at 10 ms a twentieth.
const monitorLate = 10 * time.Millisecond

// Main runs the daemon of the configuration file until SIGTERM, or until the
// node loses its lease.
func Main(path string) error {
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", string(cfg.Node))
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if err := sys.CalmMonitor(ctx, monitorLate); err != nil {
		log.Warn("the daemon wakes more often than it must", "err", err)
	}
	d := &Daemon{cfg: cfg, log: log, inc: unum.Incarnation(time.Now().UnixNano()), sched: sched.New(sched.Config{})}
	if err := d.run(ctx); err != nil {
		log.Error("daemon ends", "err", err)
		return err
	}
	return nil
}

// run builds the daemon bottom up and serves; what was built is taken down in
// the reverse order.
func (d *Daemon) run(ctx context.Context) error {
	var undo []func()
	defer func() {
		for i := len(undo) - 1; i >= 0; i-- {
			undo[i]()
		}
	}()
	begin := time.Now()
	step := func(name string, f func() error) error {
		from := time.Now()
		if err := f(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		d.log.Debug("step", "name", name, "ms", time.Since(from).Milliseconds())
		return nil
	}
	if err := os.MkdirAll(d.cfg.StateDir(), 0o700); err != nil {
		return err
	}
	if err := step("secret", d.secret); err != nil {
		return err
	}
	if err := step("port", d.listen); err != nil {
		return err
	}
	undo = append(undo, func() { d.wire.Close() })
	fresh := false
	err := step("find", func() (err error) {
		fresh, err = d.findWorld(ctx)
		return err
	})
	if err != nil {
		return err
	}
	worldErr := make(chan error, 1)
	// The world needs the node's index, which play has chosen already; the
	// lease confirms it while the world starts.
	go func() { worldErr <- step("world", func() error { return d.startWorld(ctx) }) }()
	err = step("membership", func() error { return d.join(ctx, fresh) })
	if werr := <-worldErr; err == nil {
		err = werr
	}
	if err == nil && fresh {
		err = d.known()
	}
	undo = append(undo, func() {
		if d.members != nil {
			d.members.Close()
		}
	})
	if err != nil {
		return err
	}
	if err := step("placement", func() error { return d.startPlacement(ctx) }); err != nil {
		return err
	}
	undo = append(undo, func() {
		d.listener.Close()
		d.rexec.Close()
		d.carrier.close()
	})
	if err := step("control", d.startControl); err != nil {
		return err
	}
	undo = append(undo, func() { d.ctl.Close() })
	beat, err := supervise.OpenBeat(d.cfg.StateDir())
	if err != nil {
		return err
	}
	defer beat.Close()
	if err := d.members.Up(ctx); err != nil {
		return err
	}
	d.debugOnSignal(ctx)
	d.log.Info("up", "ms", time.Since(begin).Milliseconds(), "range", unum.RangeOf(d.cfg.Index))
	return d.live(ctx, beat)
}

// live keeps the beat until the end.
func (d *Daemon) live(ctx context.Context, beat *supervise.Beat) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for n := 0; ; n++ {
		if err := beat.Touch(); err != nil {
			return err
		}
		if n%10 == 9 {
			d.rexec.Guests.Sweep()
		}
		select {
		case <-tick.C:
		case <-d.members.Lost():
			// The others may be told now that what ran here is dead.
			if err := d.world.Kill(context.WithoutCancel(ctx)); err != nil {
				d.log.Error("kill the world", "err", err)
			}
			return fmt.Errorf("the lease is lost: %w", unum.ErrNodeLost)
		case <-ctx.Done():
			return nil
		}
	}
}

// secret makes or finds the world's cookie, which outlives the daemon.
func (d *Daemon) secret() error {
	file := filepath.Join(d.cfg.StateDir(), "cookie")
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		b = make([]byte, 8)
		rand.Read(b)
		err = os.WriteFile(file, b, 0o600)
	}
	if err != nil {
		return err
	}
	if len(b) != 8 {
		return fmt.Errorf("%s has %d bytes, want 8", file, len(b))
	}
	d.cookie = binary.LittleEndian.Uint64(b)
	return nil
}

// listen opens the node's one port.
func (d *Daemon) listen() error {
	cert, ca, err := wire.LoadNode(d.cfg.TLSDir())
	if err != nil {
		return err
	}
	d.members = newMembers(d)
	d.wire, err = wire.New(wire.Config{
		Node: d.cfg.Node, Incarnation: d.inc, Cert: cert, CA: ca,
		Protocol: "unum/1", Version: unum.Version, Hold: true,
		Lookup: d.members.Lookup, Epoch: d.members.Epoch, Next: d.members.next, Log: d.log,
	})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", d.cfg.Listen)
	if err != nil {
		return err
	}
	d.wg.Go(func() {
		if err := d.wire.Serve(l); err != nil {
			d.log.Error("serve the port", "err", err)
		}
	})
	return nil
}

// Peer returns another node.
func (d *Daemon) peer(id unum.NodeID) (unum.Peer, error) {
	if _, ok := d.members.Lookup(id); !ok {
		return nil, &unum.Error{Op: "reach", Node: id, Err: unum.ErrNoNode}
	}
	return d.wire.Peer(id), nil
}

// place asks the scheduler.
func (d *Daemon) place(r sched.Request) sched.Decision {
	v := d.members.View()
	d.schedMu.Lock()
	defer d.schedMu.Unlock()
	return d.sched.Place(time.Now().UnixNano(), v, r)
}

func (d *Daemon) quick(r sched.Request) (sched.Decision, bool) {
	v := d.members.View()
	d.schedMu.Lock()
	defer d.schedMu.Unlock()
	return d.sched.Quick(v, r)
}

func (d *Daemon) finished(pid unum.Pid, o sched.Outcome) {
	d.schedMu.Lock()
	defer d.schedMu.Unlock()
	d.sched.Finished(time.Now().UnixNano(), pid, o)
}

func (d *Daemon) failed(pid unum.Pid) {
	d.schedMu.Lock()
	defer d.schedMu.Unlock()
	d.sched.Failed(time.Now().UnixNano(), pid)
}

// lost ends what depended on a node that is down.
func (d *Daemon) lost(id unum.NodeID) {
	d.schedMu.Lock()
	d.sched.Lost(id)
	d.schedMu.Unlock()
	d.rexec.Lost(id)
}
