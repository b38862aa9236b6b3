// Package supervise is the node supervisor, `unum init`: it keeps the daemon
// and the file server running, and kills the node's world when no daemon has
// been registered for the lease. It also holds the mount that the file server
// serves, so that a new one finds it whatever else has died. In play it is
// pid 1 of the node's PID namespace, so that its death ends the node; then it
// also reaps orphans, the world's pid 1 among them.
package supervise

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"unum/node/config"
	"unum/sys"
	"unum/world"
	"unum/world/cgroup"
)

// Places in supervisor.services.
const (
	daemon = iota
	fileServer
)

const daemonNice = -15 // 821 false alarms of failure detection under load became none

// Main runs until SIGTERM or SIGINT and returns the exit status. What it has
// to say goes to the standard error.
func Main(configPath string) int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := run(configPath, Lease, log); err != nil {
		log.Error("supervisor cannot run", "err", err)
		return 1
	}
	return 0
}

type supervisor struct {
	c        *config.Config
	group    *cgroup.Group
	log      *slog.Logger
	services []*service
	lease    time.Duration
	mount    *sys.FuseMount // the node's private one, which `unum fs` serves; nil: to be made

	killing chan error // a world's end is on its way; nil otherwise
}

func run(configPath string, lease time.Duration, log *slog.Logger) error {
	// One thread forks and sets priorities.
	runtime.LockOSThread()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT)

	c, err := config.Load(configPath)
	if err != nil {
		return err
	}
	s := &supervisor{c: c, group: cgroup.Open(c.CgroupPath), lease: lease, log: log.With("node", c.Node)}
	if err := s.group.Enrol(0); err != nil {
		return err
	}
	if os.Getpid() == 1 {
		if err := ownNamespaces(); err != nil {
			return err
		}
	} else if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	for _, x := range []struct {
		name string
		nice int
	}{daemon: {"daemon", daemonNice}, fileServer: {"fs", 0}} {
		s.services = append(s.services, &service{
			name: x.name, nice: x.nice, log: c.Log(x.name),
			argv: []string{"unum", x.name, "--config", configPath},
		})
	}
	s.services[fileServer].files = s.mountFiles
	s.loop(signals)
	s.end(signals)
	return nil
}

// ownNamespaces makes /proc show the new PID namespace, here only.
func ownNamespaces() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// loop returns when the supervisor is told to end. It is the only goroutine
// that forks and reaps, so a service cannot die before its PID is known.
func (s *supervisor) loop(signals <-chan os.Signal) {
	look := time.NewTimer(0)
	defer look.Stop()
	for {
		var start <-chan time.Time
		if wait, ok := s.startDue(); ok {
			start = time.After(wait)
		}
		select {
		case sig := <-signals:
			if sig != unix.SIGCHLD {
				s.log.Info("ending", "signal", sig)
				return
			}
			s.reap()
		case <-start:
		case <-look.C:
			look.Reset(max(s.checkLease(), s.lease/40))
		case err := <-s.killing:
			s.killing = nil
			if err != nil {
				s.log.Error("kill world", "err", err)
			}
		}
	}
}

// startDue starts the services whose time has come and returns how long the
// next one has to wait.
func (s *supervisor) startDue() (wait time.Duration, ok bool) {
	now := time.Now()
	for _, v := range s.services {
		if v.pid != 0 {
			continue
		}
		if !now.Before(v.due) {
			err := v.start(now)
			if err == nil {
				s.log.Info("started", "service", v.name, "pid", v.pid)
				continue
			}
			s.log.Error("start", "service", v.name, "err", err)
			v.began = now
			v.died(now)
		}
		if d := max(v.due.Sub(now), 0); !ok || d < wait {
			wait, ok = d, true
		}
	}
	return wait, ok
}

// reap takes all children that have ended: services, and orphans.
func (s *supervisor) reap() {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		for _, v := range s.services {
			if v.pid == pid {
				v.died(time.Now())
				s.log.Warn("died", "service", v.name, "pid", pid, "status", describe(ws), "wait", v.due.Sub(time.Now()).Round(time.Millisecond))
			}
		}
	}
}

func describe(ws unix.WaitStatus) string {
	if ws.Signaled() {
		return ws.Signal().String()
	}
	return fmt.Sprintf("exit %d", ws.ExitStatus())
}

// checkLease kills the world if the lease has run out. The kill has a
// goroutine of its own: the end of a PID namespace waits for this process to
// reap. It returns how long the lease cannot run out: while a daemon beats, the
// supervisor sleeps.
func (s *supervisor) checkLease() time.Duration {
	if s.killing != nil {
		return 0
	}
	at, _ := lastBeat(s.c.StateDir())
	if left := s.lease - (bootTime() - at); left > 0 {
		return left
	}
	pid1, err := world.Find(s.group)
	if err != nil {
		return 0
	}
	// A world that is younger than the last beat has a daemon that is about to
	// register.
	since := bootTime() - max(at, startTime(pid1))
	if since < s.lease {
		return s.lease - since
	}
	s.log.Error("no registered daemon, killing the world", "for", since.Round(time.Millisecond))
	s.dropMount()
	done := make(chan error, 1)
	s.killing = done
	go func() { done <- world.KillIn(context.Background(), s.group) }()
	return 0
}

// mountFiles is the mount for a file server that is about to start.
func (s *supervisor) mountFiles() (_ []*os.File, err error) {
	if s.mount != nil && s.mount.Dead() {
		s.mount.Close()
		s.mount = nil
	}
	if s.mount == nil {
		if s.mount, err = sys.NewFuseMount("unum"); err != nil {
			return nil, err
		}
	}
	return s.mount.Files(), nil
}

// dropMount ends the mount, and with it all calls on it: a process in one that
// nobody answers could not be killed.
func (s *supervisor) dropMount() {
	if s.mount == nil {
		return
	}
	s.mount.Close()
	s.mount = nil
	if pid := s.services[fileServer].pid; pid != 0 {
		unix.Kill(pid, unix.SIGKILL) // it holds the device too; the next one gets a new mount
	}
}

// startTime is when a process was born, as CLOCK_BOOTTIME, to 10 ms; 0 if it
// is gone (starttime of proc(5), in USER_HZ, which is 100 on all Linux has).
func startTime(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // from field 3
	if len(f) < 20 {
		return 0
	}
	ticks, _ := strconv.ParseInt(f[19], 10, 64)
	return time.Duration(ticks) * time.Second / 100
}

// end stops the services, and what else is left of the node if the end of this
// process does not do that.
func (s *supervisor) end(signals <-chan os.Signal) {
	for _, v := range s.services {
		if v.pid != 0 {
			unix.Kill(v.pid, unix.SIGTERM)
		}
	}
	s.awaitServices(signals, 2*time.Second)
	if os.Getpid() == 1 {
		return
	}
	s.dropMount()
	done := make(chan error, 1)
	go func() { done <- world.KillIn(context.Background(), s.group) }()
	for over := time.After(5 * time.Second); done != nil; {
		select {
		case err := <-done:
			if err != nil {
				s.log.Error("kill world", "err", err)
			}
			done = nil
		case <-signals:
			s.reap()
		case <-over:
			done = nil
		}
	}
	for _, v := range s.services {
		if v.pid != 0 {
			unix.Kill(v.pid, unix.SIGKILL)
		}
	}
	s.awaitServices(signals, time.Second)
}

func (s *supervisor) awaitServices(signals <-chan os.Signal, limit time.Duration) {
	over := time.After(limit)
	for {
		s.reap()
		running := false
		for _, v := range s.services {
			running = running || v.pid != 0
		}
		if !running {
			return
		}
		select {
		case <-signals:
		case <-over:
			return
		}
	}
}

// LogPath is where the supervisor's own output goes in play.
func LogPath(c *config.Config) string { return filepath.Join(c.Dir, "init.log") }
