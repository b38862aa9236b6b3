package rexec

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
	"unum/deputy"
	"unum/sys"
)

// Runs starts processes in the world for the control socket. Each leads a
// session of its own and is a child of one agent, which tells how it ended.
type Runs struct {
	cfg Config
	mk  *maker
	log *slog.Logger

	start   sync.Mutex // one birth at a time: the child's number is not known before
	mu      sync.Mutex
	agent   *session
	runs    map[unum.Pid]*run
	records records[runRecord]
	wg      sync.WaitGroup
}

type run struct {
	runRecord
	parent *deputy.Stub // the agent that forked it
	done   chan struct{}
}

// runRecord is what a successor of the daemon must know of a run; the agent
// has the record 0, with only its Host.
type runRecord struct {
	Uid  uint32
	Host int
	End  eventReq // Kind 0 while it runs
}

// Ended is how a process of Runs ended.
type Ended struct {
	Code   int // if Signal is 0
	Signal int
	Core   bool
}

// Command is a process to start. Env decides its placement.
type Command struct {
	Argv       []string
	Env        []string
	Dir        string
	Umask      uint32
	Nice       int
	Limits     map[int]unix.Rlimit
	Uid, Gid   uint32
	Groups     []uint32
	NoNewPrivs bool
	CapBnd     uint64
	Files      [3]*os.File
	TTY        bool
}

func newRuns(cfg Config, mk *maker) *Runs {
	return &Runs{cfg: cfg, mk: mk, log: cfg.Log, runs: map[unum.Pid]*run{}}
}

// Start starts a command and returns when its exec has succeeded, here or on
// another node. A failed exec returns its errno.
func (r *Runs) Start(ctx context.Context, c *Command) (unum.Pid, error) {
	file, err := r.search(c)
	if err != nil {
		return 0, err
	}
	spec := &Spec{
		Sid: newSession, Pgid: newSession, Path: file, Argv: c.Argv, Env: c.Env, Cwd: c.Dir,
		Umask: c.Umask, Nice: c.Nice, Limits: r.mk.limits,
		Groups: c.Groups, NoNewPrivs: c.NoNewPrivs, CapBnd: r.mk.caps.CapBnd & c.CapBnd, ctty: -1,
		placeable: true,
	}
	for i := range 4 {
		spec.Uid[i], spec.Gid[i] = c.Uid, c.Gid
	}
	if c.Uid == 0 {
		spec.CapPrm, spec.CapEff = r.mk.caps.CapPrm&c.CapBnd, r.mk.caps.CapEff&c.CapBnd
	}
	for i, l := range c.Limits {
		spec.Limits[i] = l
	}
	if c.TTY {
		spec.ctty = 0
	}
	b := &birth{spec: spec}
	for i, f := range c.Files {
		if f != nil {
			b.locals = append(b.locals, local{Local: carry.Local{File: f}, nums: []int{i}})
		}
	}
	r.start.Lock()
	defer r.start.Unlock()
	if b.parent, err = r.forker(ctx); err != nil {
		return 0, err
	}
	// The process may end before make returns: its end waits for its entry.
	s, err := r.mk.make(ctx, b)
	var ex *execError
	if errors.As(err, &ex) {
		return 0, ex.errno
	}
	if err != nil {
		return 0, err
	}
	r.mu.Lock()
	x := r.entry(s.Pid)
	x.Uid, x.Host, x.parent = c.Uid, s.HostPid, b.parent
	err = r.records.save(s.Pid.String(), &x.runRecord)
	r.mu.Unlock()
	if b.parent.Dead() {
		r.orphaned(s.Pid, s.HostPid)
	}
	return s.Pid, err
}

// entry finds or makes the entry of a process. Preconditions: r.mu is held.
func (r *Runs) entry(pid unum.Pid) *run {
	x := r.runs[pid]
	if x == nil {
		x = &run{done: make(chan struct{})}
		r.runs[pid] = x
	}
	return x
}

func (r *Runs) forker(ctx context.Context) (*deputy.Stub, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.agent != nil && !r.agent.agent.Dead() {
		return r.agent.agent, nil
	}
	a, err := r.mk.agent(ctx, r.mk.root, 0, false, true, nil)
	if err != nil {
		return nil, err
	}
	s := &session{parent: parent{agent: a}}
	s.watch(r.cfg.Cookie, r.log, r.ended)
	r.agent = s
	r.outlive(a)
	return a, r.records.save("0", &runRecord{Host: a.HostPid})
}

// recover finds the processes and their agent again.
func (r *Runs) recover() (err error) {
	if r.records, err = openRecords[runRecord](filepath.Join(r.cfg.StateDir, "runs")); err != nil {
		return err
	}
	all, err := r.records.load()
	if err != nil {
		return err
	}
	for key, rec := range all {
		var pid unum.Pid
		if _, err := fmt.Sscan(key, &pid); err != nil {
			return fmt.Errorf("run record %q: %w", key, err)
		}
		if pid == 0 {
			continue
		}
		x := r.entry(pid)
		x.runRecord = *rec
		if rec.End.Kind != 0 {
			close(x.done)
		}
	}
	rec := all["0"]
	if rec == nil {
		return nil
	}
	a := deputy.Ended(0) // killed meanwhile
	pid, err := sys.WorldPid(rec.Host)
	if err == nil && isStub(rec.Host) {
		if a, err = r.cfg.Registry.Adopt(rec.Host, pid); err != nil {
			return err
		}
	}
	for _, x := range r.runs {
		x.parent = a
	}
	r.outlive(a)
	if a.Dead() {
		return nil
	}
	r.agent = &session{parent: parent{agent: a}}
	r.agent.watch(r.cfg.Cookie, r.log, r.ended)
	reap(&r.agent.parent, r.cfg.Cookie, r.log, r.ended)
	return nil
}

// outlive waits for the end of an agent, and then for those of its processes
// (see orphan.go).
func (r *Runs) outlive(agent *deputy.Stub) {
	r.wg.Go(func() {
		<-agent.Gone()
		r.mu.Lock()
		defer r.mu.Unlock()
		for pid, x := range r.runs {
			if x.parent == agent && x.End.Kind == 0 {
				r.orphaned(pid, x.Host)
			}
		}
	})
}

// orphaned waits for the end of a process whose agent is gone.
func (r *Runs) orphaned(pid unum.Pid, host int) {
	r.wg.Go(func() {
		s := deputy.Ended(pid)
		if at, err := sys.WorldPid(host); err == nil && at == pid {
			if w, err := r.cfg.Registry.Watch(host, pid); err == nil {
				s = w
			}
		}
		r.ended([]childEvent{{pid: pid, info: *orphanEnd(s)}})
	})
}

func (r *Runs) ended(evs []childEvent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range evs {
		r.endedLocked(evs[i].pid, &evs[i].info)
	}
}

func (r *Runs) endedLocked(pid unum.Pid, si *sys.Siginfo) {
	x := r.entry(pid)
	if x.End.Kind != 0 {
		return
	}
	switch si.Code() {
	case cldExited:
		x.End = eventReq{Kind: exited, Status: int(si.Status())}
	case cldKilled, cldDumped:
		x.End = eventReq{Kind: killed, Status: int(si.Status()), Core: si.Code() == cldDumped}
	default:
		return
	}
	if x.Host != 0 { // else Start is about to write it down
		if err := r.records.save(pid.String(), &x.runRecord); err != nil {
			r.log.Error("write down the end of a process", "pid", pid, "err", err)
		}
	}
	close(x.done)
}

// Wait returns how a process that Start started ended, and uid, whose it is.
func (r *Runs) Wait(ctx context.Context, pid unum.Pid) (Ended, error) {
	r.mu.Lock()
	x := r.runs[pid]
	r.mu.Unlock()
	if x == nil {
		return Ended{}, unum.ErrNoProcess
	}
	select {
	case <-x.done:
	case <-ctx.Done():
		return Ended{}, ctx.Err()
	}
	if x.End.Kind == exited {
		return Ended{Code: x.End.Status}, nil
	}
	return Ended{Signal: x.End.Status, Core: x.End.Core}, nil
}

// Owner returns whose process it is.
func (r *Runs) Owner(pid unum.Pid) (uid uint32, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.runs[pid]
	if x == nil {
		return 0, unum.ErrNoProcess
	}
	return x.Uid, nil
}

// HostPid returns the process's number in the daemon's PID namespace, unless
// it has ended.
func (r *Runs) HostPid(pid unum.Pid) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.runs[pid]
	if x == nil {
		return 0, unum.ErrNoProcess
	}
	select {
	case <-x.done:
		return 0, unum.ErrNoProcess
	default:
		return x.Host, nil
	}
}

// Release forgets a process.
func (r *Runs) Release(pid unum.Pid) {
	r.mu.Lock()
	delete(r.runs, pid)
	r.records.remove(pid.String())
	r.mu.Unlock()
}

// search finds the file of a command as execvp does: EACCES is remembered, the
// search goes on.
func (r *Runs) search(c *Command) (string, error) {
	if len(c.Argv) == 0 || c.Argv[0] == "" {
		return "", unix.ENOENT
	}
	name := c.Argv[0]
	if strings.Contains(name, "/") {
		return name, nil
	}
	dirs := "/usr/local/bin:/usr/bin:/bin"
	for _, e := range c.Env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			dirs = v
		}
	}
	var last error = unix.ENOENT
	for _, d := range strings.Split(dirs, ":") {
		file := path.Join(d, name)
		if !path.IsAbs(file) {
			file = path.Join(c.Dir, file)
		}
		fd, err := unix.Openat2(int(r.cfg.WorldRoot.Fd()), file, &unix.OpenHow{
			Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT,
		})
		if err != nil {
			continue
		}
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		unix.Close(fd)
		if err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		if st.Mode&0o111 == 0 {
			last = unix.EACCES
			continue
		}
		return file, nil
	}
	return "", last
}
