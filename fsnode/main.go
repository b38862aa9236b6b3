// Package fsnode is the file server process of a node, `unum fs`. It serves
// the node's private FUSE mount, on which carried descriptions are opened
// (package carry/file).
//
// It is a process of its own because whoever serves a mount must not fork,
// exec, trace or map files on it, and because it outlives the daemon. The
// daemon connects to its socket, gets the root of the mount, and passes
// operations on to other nodes. The mount is its parent's, the supervisor's,
// which gives it to each file server that it starts, with memory in which lies
// what one must know when another was killed; requests that that had read and
// not answered come again (FUSE_NOTIFY_RESEND, Linux 6.9). So a file server
// needs no daemon to begin: a daemon that is killed may be in the midst of a
// call on the mount, and does not end before that is answered.
package fsnode

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/sys"
)

// Main runs the file server of the node whose config file lies at configPath,
// in the node's directory, until it is told to end by SIGTERM or SIGINT. It
// logs to standard error.
func Main(configPath string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := hurry(); err != nil {
		log.Warn("the file server runs at the priority of what it serves", "err", err)
	}
	if err := sys.CalmMonitor(ctx, monitorLate); err != nil {
		log.Warn("the file server wakes more often than it must", "err", err)
	}
	mount, err := sys.InheritedFuseMount(firstFile)
	if err != nil {
		return &unum.Error{Op: "file server", Err: err}
	}
	defer mount.Close()
	return Serve(ctx, Config{StateDir: filepath.Join(filepath.Dir(configPath), "state"), Mount: mount, Log: log})
}

// monitorLate is how late Go's monitor thread may wake here: many calls may
// wait for a disk at once.
const monitorLate = 2 * time.Millisecond

// firstFile is the first descriptor of the mount that the supervisor hands on,
// behind the standard streams.
const firstFile = 3

// hurry gives all threads the daemon's priority: every call of a body passes
// both, and would wait behind the node's work twice. A thread that is made
// later has its maker's (setpriority(2)).
func hurry() error {
	const nice = -15
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		if err := unix.Setpriority(unix.PRIO_PROCESS, tid, nice); err != nil && err != unix.ESRCH {
			return err
		}
	}
	return nil
}

// Config says where a file server works.
type Config struct {
	StateDir string // holds the socket
	Mount    *sys.FuseMount
	Log      *slog.Logger

	noResend bool // behave as on a kernel that cannot send requests again
}

// Serve serves one node's mount, which stays the caller's, until ctx ends.
func Serve(ctx context.Context, cfg Config) error {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s, err := newServer(cfg)
	if err != nil {
		return &unum.Error{Op: "file server", Path: cfg.StateDir, Err: err}
	}
	defer s.close()
	if err := s.run(ctx); err != nil {
		return &unum.Error{Op: "file server", Path: cfg.StateDir, Err: err}
	}
	return nil
}
