package world

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/sys"
	"unum/world/cgroup"
)

// World is a running world. Its methods may be called from any goroutine.
type World struct {
	log      *slog.Logger
	cgroup   *cgroup.Group // the world's own
	pid1     int           // in the caller's PID namespace
	pidfd    int
	pidns    *os.File
	listener *os.File // nil without a filter

	mu    sync.Mutex
	hosts map[unum.Pid]int // what scan found, for kernels before 6.11
}

func (c *Config) complete() {
	if c.Root == "" {
		c.Root = "/"
	}
	if c.Exe == "" {
		c.Exe = "/proc/self/exe"
	}
	if c.Mount == "" {
		c.Mount = filepath.Join(filepath.Dir(c.PubDir), "root")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// Start makes a world and returns when its pid 1 is the stub. On failure
// nothing is left of it. The error wraps unum.ErrExists if the node's cgroup
// has a world already, unum.ErrNoFeature if the kernel lacks something.
func Start(ctx context.Context, c Config) (*World, error) {
	c.complete()
	w, err := start(ctx, &c)
	if err != nil {
		return nil, &unum.Error{Op: "start world", Err: err}
	}
	return w, nil
}

func start(ctx context.Context, c *Config) (_ *World, err error) {
	if err := noWorld(c.Cgroup); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.Mount, 0o755); err != nil {
		return nil, err
	}
	group, err := c.Cgroup.Child("world")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			group.Kill()
			if e := group.Remove(context.WithoutCancel(ctx)); e != nil {
				err = fmt.Errorf("%w; and then: %v", err, e)
			}
		}
	}()
	sc := stageConfig{Config: *c, CgroupName: group.Name()}
	if birth, err := group.BirthDir(); err != nil {
		return nil, err
	} else if birth != nil {
		sc.BirthDir = true
		birth.Close()
	}
	pidfd, pid1, err := runStages(ctx, &sc)
	if err != nil {
		return nil, err
	}
	return newWorld(c, group, pid1, pidfd)
}

// noWorld waits for the end of a world that a dead daemon had half made, and
// fails if there is a whole one.
func noWorld(node *cgroup.Group) error {
	for deadline := time.Now().Add(halfMade); ; time.Sleep(time.Millisecond) {
		pid1, err := findPid1(node)
		if err != nil {
			return nil
		}
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid1))
		if err == nil && strings.HasPrefix(exe, "/memfd:"+stubName) || time.Now().After(deadline) {
			return fmt.Errorf("pid 1 is %d: %w", pid1, unum.ErrExists)
		}
	}
}

// runStages starts the stages and returns when the stub runs, or what they
// reported.
func runStages(ctx context.Context, sc *stageConfig) (pidfd, pid1 int, err error) {
	config, err := configFile(sc)
	if err != nil {
		return -1, 0, err
	}
	defer config.Close()
	reports, report, err := os.Pipe()
	if err != nil {
		return -1, 0, err
	}
	defer reports.Close()
	ack, acked, err := os.Pipe()
	if err != nil {
		report.Close()
		return -1, 0, err
	}
	defer acked.Close()

	cmd := exec.CommandContext(ctx, sc.Exe, Stage1Command)
	cmd.Args[0] = "unum"
	cmd.Stderr = os.Stderr // a panic of a stage
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{config, report, ack} // configFD, reportFD, ackFD
	err = cmd.Start()
	report.Close()
	ack.Close()
	if err != nil {
		return -1, 0, err
	}
	stop := context.AfterFunc(ctx, func() { reports.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	pidfd = -1
	r := bufio.NewReader(reports)
	if line, e := r.ReadString('\n'); e == nil {
		if _, err = fmt.Sscanf(line, "pid %d", &pid1); err == nil {
			pidfd, err = sys.PidfdOpen(pid1)
		}
	} else {
		err = reported(line)
	}
	acked.Close()
	if rest, e := io.ReadAll(r); err == nil && e == nil && len(rest) > 0 {
		err = reported(string(rest))
	} else if err == nil {
		err = e
	}
	if e := cmd.Wait(); err == nil {
		err = e
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil && pidfd >= 0 {
		sys.PidfdSendSignal(pidfd, unix.SIGKILL, nil)
		unix.Close(pidfd)
	}
	return pidfd, pid1, err
}

func configFile(sc *stageConfig) (*os.File, error) {
	b, err := json.Marshal(sc)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("unum-config", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "config")
	if _, err := f.Write(b); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Find returns the host PID of pid 1 of the world in a node's cgroup;
// unum.ErrNoProcess if there is none.
func Find(node *cgroup.Group) (int, error) {
	pid, err := findPid1(node)
	if err != nil {
		return 0, &unum.Error{Op: "find world", Err: err}
	}
	return pid, nil
}

// findPid1: pid 1 of the world is the member of the registry that is 1 in the
// PID namespace right below the caller's. A container inside the world has a
// longer list.
func findPid1(node *cgroup.Group) (int, error) {
	pids, err := node.Procs()
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		if ns, err := nsPids(pid); err == nil && len(ns) == 2 && ns[1] == 1 && !zombie(pid) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("pid 1 of the world: %w", unum.ErrNoProcess)
}

// Attach takes over the world that an earlier daemon left in c.Cgroup, with
// its listener. unum.ErrNoProcess if there is none.
func Attach(ctx context.Context, c Config) (*World, error) {
	c.complete()
	w, err := attach(&c)
	if err != nil {
		return nil, &unum.Error{Op: "take over world", Err: err}
	}
	return w, nil
}

func attach(c *Config) (*World, error) {
	pid1, err := findPid1(c.Cgroup)
	if err != nil {
		return nil, err
	}
	pidfd, err := sys.PidfdOpen(pid1)
	if err != nil {
		return nil, err
	}
	// The number may have found another process meanwhile.
	if again, err := findPid1(c.Cgroup); err != nil || again != pid1 {
		unix.Close(pidfd)
		return nil, fmt.Errorf("pid 1 of the world: %w", unum.ErrNoProcess)
	}
	group, err := c.Cgroup.Child("world")
	if err != nil {
		unix.Close(pidfd)
		return nil, err
	}
	return newWorld(c, group, pid1, pidfd)
}

// newWorld takes pidfd, also when it fails.
func newWorld(c *Config, group *cgroup.Group, pid1, pidfd int) (_ *World, err error) {
	w := &World{log: c.Log, cgroup: group, pid1: pid1, pidfd: pidfd, hosts: map[unum.Pid]int{}}
	defer func() {
		if err != nil {
			w.Close()
		}
	}()
	if len(c.Filter) > 0 {
		if w.listener, err = takeListener(pidfd); err != nil {
			return nil, err
		}
	}
	w.pidns, err = os.Open(fmt.Sprintf("/proc/%d/ns/pid", pid1))
	return w, err
}

// halfMade is how long a world may be on its way to its stub when the daemon
// that started it has died.
const halfMade = 2 * time.Second

// takeListener duplicates pid 1's listener. If pid 1 is not the stub yet, it
// waits; a pid 1 that never becomes it is killed.
func takeListener(pidfd int) (*os.File, error) {
	for deadline := time.Now().Add(halfMade); ; time.Sleep(time.Millisecond) {
		l, err := sys.PidfdGetfd(pidfd, ListenerFD)
		switch {
		case err == nil:
			return l, nil
		case errors.Is(err, unix.ESRCH):
			return nil, fmt.Errorf("pid 1 of the world: %w", unum.ErrNoProcess)
		case !errors.Is(err, unix.EBADF):
			return nil, fmt.Errorf("take listener of pid 1: %w", err)
		case time.Now().After(deadline):
			sys.PidfdSendSignal(pidfd, unix.SIGKILL, nil)
			sys.PidfdWait(pidfd)
			return nil, fmt.Errorf("pid 1 of the world never had a listener: %w", unum.ErrNoProcess)
		}
	}
}

// Pid1HostPid is pid 1 in the daemon's PID namespace.
func (w *World) Pid1HostPid() int { return w.pid1 }

// PidFD is a pidfd of pid 1, borrowed until Close.
func (w *World) PidFD() int { return w.pidfd }

// Listener is the seccomp listener, borrowed until Close; nil if the world has
// no filter.
func (w *World) Listener() *os.File { return w.listener }

// Cgroup is the world's own group: the registry of its processes.
func (w *World) Cgroup() *cgroup.Group { return w.cgroup }

// Wait returns when pid 1 has ended, and with it every process of the world.
func (w *World) Wait() error { return sys.PidfdWait(w.pidfd) }

// Kill kills every process of the world, waits until they are gone, and
// removes the world's cgroup. World stays to be closed.
func (w *World) Kill(ctx context.Context) error {
	if err := killPid1(ctx, w.pidfd); err != nil {
		return &unum.Error{Op: "kill world", Err: err}
	}
	return w.cgroup.Remove(ctx)
}

// killPid1 kills pid 1, and the kernel every other process of the namespace
// before pid 1 has ended (pid_namespaces(7)).
func killPid1(ctx context.Context, pidfd int) error {
	if err := sys.PidfdSendSignal(pidfd, unix.SIGKILL, nil); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- sys.PidfdWait(pidfd) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// KillIn kills the world in a node's cgroup, if there is one, and returns
// when it is gone: for a supervisor that has no World.
func KillIn(ctx context.Context, node *cgroup.Group) error {
	w, err := attach(&Config{Cgroup: node, Log: slog.New(slog.DiscardHandler)})
	if errors.Is(err, unum.ErrNoProcess) {
		return nil
	}
	if err != nil {
		return &unum.Error{Op: "kill world", Err: err}
	}
	defer w.Close()
	return w.Kill(ctx)
}

// Close releases the descriptors. The world lives on.
func (w *World) Close() error {
	if w.listener != nil {
		w.listener.Close()
	}
	if w.pidns != nil {
		w.pidns.Close()
	}
	return unix.Close(w.pidfd)
}

// Inside returns the node whose world the caller is in, if it is in one.
func Inside() (unum.NodeID, bool) {
	b, err := fs.ReadFile(os.DirFS("/"), nodeFile[1:])
	return unum.NodeID(strings.TrimSpace(string(b))), err == nil
}
