package ctl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"unum"
)

type started struct{ Pid unum.Pid }

type signalEvent struct{ Sig int }

const opSignal = "signal"

// run starts a command and, unless it is detached, follows it to its end.
func (s *Server) run(ctx context.Context, c *conn, caller Caller, req *RunRequest, files []*os.File) error {
	if len(req.Argv) == 0 {
		return fmt.Errorf("no command: %w", unix.EINVAL)
	}
	if req.ID == "" {
		return fmt.Errorf("a request without an ID: %w", unix.EINVAL)
	}
	// The daemon before this one may have started it.
	if pid, err := s.cfg.Backend.Started(ctx, caller, req.ID); !errors.Is(err, unum.ErrNoProcess) {
		if err != nil {
			return err
		}
		s.log.Info("found again", "pid", pid, "command", req.Argv[0])
		err := c.send(&message{Op: opStarted}, started{pid})
		if req.Detach {
			return err
		}
		return s.follow(ctx, c, caller, pid)
	}
	limits, err := caller.limits(req.Rlimits)
	if err != nil {
		return err
	}
	cmd := &Command{
		ID: req.ID, Argv: req.Argv, Env: req.Env, Dir: req.Dir, Umask: req.Umask & 0o777, Nice: req.Nice,
		Rlimits: limits,
		Uid:     caller.Uid, Gid: caller.Gid, Groups: caller.Groups,
		NoNewPrivs: caller.NoNewPrivs, CapBounding: caller.CapBounding,
	}
	if !path.IsAbs(cmd.Dir) {
		return fmt.Errorf("directory %q is not absolute: %w", cmd.Dir, unix.EINVAL)
	}
	if req.User != "" {
		if err := cmd.become(caller, req.User); err != nil {
			return err
		}
	}
	if !caller.Root() && cmd.Nice < 0 {
		cmd.Nice = 0
	}
	if req.Node != "" {
		switch req.Node {
		case "here", "elsewhere", "auto":
		default:
			if err := s.cfg.Backend.CheckNode(ctx, unum.NodeID(req.Node)); err != nil {
				return err
			}
		}
		cmd.Env = setenv(cmd.Env, "UNUM_NODE", req.Node)
	}

	var own []*os.File // closed when the command has them
	defer func() {
		for _, f := range own {
			f.Close()
		}
	}()
	var logf *pendingLog
	switch {
	case req.Detach:
		if s.cfg.Logs == nil {
			return errors.New("this node keeps no logs: cannot run detached")
		}
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		own = append(own, null)
		if logf, err = s.cfg.Logs.create(cmd.Uid, req.ID); err != nil {
			return fmt.Errorf("log: %w", err)
		}
		defer logf.abandon()
		cmd.Files = [3]*os.File{null, logf.f, logf.f}
	case req.TTY:
		m, slave, err := s.cfg.Backend.OpenTTY(ctx)
		if err != nil {
			return fmt.Errorf("terminal: %w", err)
		}
		own = append(own, slave)
		err = prepareTTY(slave, cmd.Uid, req)
		if err == nil {
			err = c.send(&message{Op: opTerminal}, nil, m)
		}
		m.Close() // it must hang up when the client goes
		if err != nil {
			return fmt.Errorf("terminal: %w", err)
		}
		cmd.TTY = true
		cmd.Files = [3]*os.File{slave, slave, slave}
	default:
		if len(files) != 3 {
			return fmt.Errorf("%d descriptors came, not 3: %w", len(files), unix.EBADF)
		}
		cmd.Files = [3]*os.File(files)
	}

	pid, err := s.cfg.Backend.Start(ctx, caller, cmd)
	if err != nil {
		return err
	}
	for _, f := range files {
		f.Close()
	}
	s.log.Debug("run", "pid", pid, "uid", cmd.Uid, "command", req.Argv[0], "detach", req.Detach)
	if req.Detach {
		if err := logf.keep(pid); err != nil {
			s.log.Warn("log of a detached process", "pid", pid, "err", err)
		}
		s.wg.Go(func() { s.tend(ctx, pid, time.Time{}) })
		return c.send(&message{Op: opStarted}, started{pid})
	}
	for _, f := range own { // the terminal must hang up when the client goes
		f.Close()
	}
	own = nil
	c.send(&message{Op: opStarted}, started{pid}) // if the client is gone, follow sees it
	return s.follow(ctx, c, caller, pid)
}

// resume goes on with the processes of the daemon before this one, and removes
// the logs of those that it did not come to start.
func (s *Server) resume() {
	s.wg.Go(func() {
		found, err := s.cfg.Backend.Found(s.ctx)
		if err != nil {
			return // this daemon ends
		}
		until := time.Now().Add(reconnectFor)
		for _, pid := range found {
			s.wg.Go(func() { s.claimed(pid, until) })
		}
	})
	if s.cfg.Logs == nil {
		return
	}
	for id, l := range s.cfg.Logs.pending() {
		pid, err := s.cfg.Backend.Started(s.ctx, Caller{}, id)
		if err == nil {
			err = l.keep(pid)
		}
		if err != nil {
			if !errors.Is(err, unum.ErrNoProcess) {
				s.log.Warn("log of a detached process", "id", id, "err", err)
			}
			os.Remove(l.name)
		}
	}
	until := time.Now().Add(reconnectFor)
	for _, pid := range s.cfg.Logs.pids() {
		s.wg.Go(func() { s.tend(s.ctx, pid, until) })
	}
}

// tend waits for a detached process and notes its end in the log's record.
// It is remembered until then, since its client may still ask whether it was
// started.
func (s *Server) tend(ctx context.Context, pid unum.Pid, until time.Time) {
	exit, err := s.cfg.Backend.Wait(ctx, Caller{}, pid) // as root
	if ctx.Err() != nil {
		return
	}
	if !s.cfg.Logs.noted(pid) {
		s.cfg.Logs.ended(pid, exit, err)
	}
	select {
	case <-time.After(time.Until(until)):
		s.cfg.Backend.Release(pid)
	case <-ctx.Done():
	}
}

// claimed sees to a process of the daemon before this one: if nobody has come
// to follow it when its client would have given up, then that is gone, or was
// told of its end.
func (s *Server) claimed(pid unum.Pid, until time.Time) {
	select {
	case <-time.After(time.Until(until)):
	case <-s.ctx.Done():
		return
	}
	if s.isFollowed(pid) {
		return
	}
	s.cfg.Backend.Wait(s.ctx, Caller{}, pid)
	if s.ctx.Err() == nil && !s.isFollowed(pid) {
		s.cfg.Backend.Release(pid)
	}
}

func (s *Server) isFollowed(pid unum.Pid) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.followed[pid] > 0
}

func (s *Server) addFollower(pid unum.Pid, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.followed[pid] += n; s.followed[pid] == 0 {
		delete(s.followed, pid)
	}
}

// follow tells the client how pid ends, and passes the client's signals on.
// Then pid is released, since nobody will ask again.
func (s *Server) follow(ctx context.Context, c *conn, caller Caller, pid unum.Pid) error {
	s.addFollower(pid, 1)
	defer s.addFollower(pid, -1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		defer cancel() // the client is gone: nobody waits
		for {
			m, files, err := c.recv()
			if err != nil {
				return
			}
			for _, f := range files {
				f.Close()
			}
			if m.Op != opSignal {
				return
			}
			var ev signalEvent
			if msgpack.Unmarshal(m.Body, &ev) != nil {
				return
			}
			err = s.cfg.Backend.Signal(ctx, caller, pid, unix.Signal(ev.Sig))
			if err != nil && !errors.Is(err, unum.ErrNoProcess) && !errors.Is(err, unix.ESRCH) {
				s.log.Warn("signal", "pid", pid, "sig", ev.Sig, "err", err)
			}
		}
	}()
	exit, err := s.cfg.Backend.Wait(ctx, caller, pid)
	switch {
	case ctx.Err() != nil:
		// The client is gone, or this daemon ends. In the first case nobody will
		// ask how the command ended.
		err = nil
		if s.ctx.Err() == nil {
			s.wg.Go(func() {
				s.cfg.Backend.Wait(s.ctx, Caller{}, pid)
				if s.ctx.Err() == nil {
					s.cfg.Backend.Release(pid)
				}
			})
		}
	case err != nil:
		c.send(&message{Op: opError, Err: toWire(err)}, nil)
		err = nil
	default:
		c.send(&message{Op: opExit}, exit) // if it fails, the client is gone
		s.cfg.Backend.Release(pid)
	}
	c.uc.CloseRead()
	wg.Wait()
	return err
}

// prepareTTY makes a fresh terminal the user's, looking like the client's.
func prepareTTY(slave *os.File, uid uint32, req *RunRequest) error {
	fd := int(slave.Fd())
	// Group tty, as grantpt does; there are systems without that group.
	if g, err := user.LookupGroup("tty"); err == nil {
		if gid, err := strconv.Atoi(g.Gid); err == nil {
			unix.Fchown(fd, -1, gid)
		}
	}
	if err := unix.Fchown(fd, int(uid), -1); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, 0o620); err != nil {
		return err
	}
	if req.Termios != nil {
		if err := unix.IoctlSetTermios(fd, unix.TCSETS, req.Termios); err != nil {
			return err
		}
	}
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: req.Rows, Col: req.Cols})
}

// become sets the identity that root asked for: a name, or uid[:gid].
func (cmd *Command) become(caller Caller, who string) error {
	uid, gid, groups, home, name, err := lookupUser(who)
	if err != nil {
		return err
	}
	if !caller.Root() {
		if uid != caller.Uid {
			return fmt.Errorf("only root may run as %s: %w", who, unum.ErrDenied)
		}
		return nil // as himself, with the groups he has
	}
	cmd.Uid, cmd.Gid, cmd.Groups = uid, gid, groups
	if name != "" {
		cmd.Env = setenv(cmd.Env, "USER", name)
		cmd.Env = setenv(cmd.Env, "LOGNAME", name)
		cmd.Env = setenv(cmd.Env, "HOME", home)
	}
	return nil
}

func lookupUser(who string) (uid, gid uint32, groups []uint32, home, name string, err error) {
	id, g, hasGid := strings.Cut(who, ":")
	u, err := user.Lookup(id)
	if err != nil {
		u, err = user.LookupId(id)
	}
	if err != nil {
		n, perr := strconv.ParseUint(id, 10, 32)
		if perr != nil {
			return 0, 0, nil, "", "", fmt.Errorf("no such user: %s", id)
		}
		u = &user.User{Uid: id, Gid: id}
		uid, gid = uint32(n), uint32(n)
	} else {
		uid, gid, home, name = atou(u.Uid), atou(u.Gid), u.HomeDir, u.Username
		ids, _ := u.GroupIds()
		for _, s := range ids {
			groups = append(groups, atou(s))
		}
	}
	if hasGid {
		if gr, gerr := user.LookupGroup(g); gerr == nil {
			g = gr.Gid
		}
		n, perr := strconv.ParseUint(g, 10, 32)
		if perr != nil {
			return 0, 0, nil, "", "", fmt.Errorf("no such group: %s", g)
		}
		gid = uint32(n)
	}
	return uid, gid, groups, home, name, nil
}

func atou(s string) uint32 {
	n, _ := strconv.ParseUint(s, 10, 32)
	return uint32(n)
}

func setenv(env []string, key, val string) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(e string) bool { return strings.HasPrefix(e, key+"=") })
	return append(env, key+"="+val)
}
