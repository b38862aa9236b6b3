package rexec

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
	"unum/deputy"
)

// Runs starts processes in the world for the control socket. Each leads a
// session of its own and is a child of one agent, which tells how it ended.
type Runs struct {
	cfg Config
	mk  *maker
	log *slog.Logger

	start   sync.Mutex // one birth at a time: the child's number is not known before
	records records[runRecord]

	mu    sync.Mutex
	agent *session
	runs  map[unum.Pid]*run
	// birth is the one under way, or the one under way when the daemon before
	// this one died, if its child is not to be seen: it never was, or has ended,
	// which its agent tells.
	birth   *runRecord
	undone  map[unum.Pid]chan struct{} // children without an exec; closed when reaped
	settled <-chan struct{}            // closed when the agent has told what ended before this daemon

	wg sync.WaitGroup
}

type run struct {
	runRecord
	parent *deputy.Stub // the agent that forked it
	done   chan struct{}
	own    bool // this daemon started it
}

// runRecord is what a successor of the daemon must know of a run. The agent
// has the record "0", with only its Host; a birth under way, whose number is
// not known, has the record "birth".
type runRecord struct {
	ID   string // the client's, of its request
	Uid  uint32
	Host int
	End  eventReq // Kind 0 while it runs
	Lent []FileID
}

// FileID is a file, by device and inode.
type FileID struct{ Dev, Ino uint64 }

const birthKey = "birth"

// Ended is how a process of Runs ended.
type Ended struct {
	Code   int // if Signal is 0
	Signal int
	Core   bool
}

// Command is a process to start. Env decides its placement. A Command with the
// ID of one that was started is not started again.
type Command struct {
	ID         string
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
	Lent       []FileID // those of Files that the client goes on to hold
	TTY        bool
}

func newRuns(cfg Config, mk *maker) *Runs {
	settled := make(chan struct{})
	close(settled)
	return &Runs{
		cfg: cfg, mk: mk, log: cfg.Log, runs: map[unum.Pid]*run{}, undone: map[unum.Pid]chan struct{}{},
		settled: settled,
	}
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
	if pid, err := r.Started(ctx, c.ID); err == nil {
		return pid, nil
	}
	if b.parent, err = r.forker(ctx); err != nil {
		return 0, err
	}
	// Known before it can run, so that a successor looks for it.
	rec := &runRecord{ID: c.ID, Uid: c.Uid, Lent: c.Lent}
	if err := r.begin(rec); err != nil {
		return 0, err
	}
	var undone chan struct{}
	b.undo = func(pid unum.Pid) { undone = r.undo(pid) }
	s, err := r.mk.make(ctx, b)
	if err != nil {
		r.forsake()
		if undone != nil {
			// Reaped before the next is born, so that nobody takes it for that.
			select {
			case <-undone:
			case <-b.parent.Gone():
			}
		}
		var ex *execError
		if errors.As(err, &ex) {
			return 0, ex.errno
		}
		return 0, err
	}
	err = r.born(s, b.parent, rec)
	if b.parent.Dead() {
		r.orphaned(s.Pid, s.HostPid)
	}
	return s.Pid, err
}

func (r *Runs) begin(rec *runRecord) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.birth = rec
	err := r.records.save(birthKey, rec)
	if err != nil {
		r.birth = nil
	}
	return err
}

// born writes a process down whose exec has succeeded. It may have ended.
func (r *Runs) born(s, agent *deputy.Stub, rec *runRecord) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.runs[s.Pid]
	if x == nil || x.ID != rec.ID {
		x = &run{runRecord: *rec, done: make(chan struct{})}
		r.runs[s.Pid] = x
	}
	x.Host, x.parent, x.own = s.HostPid, agent, true
	err := r.records.save(s.Pid.String(), &x.runRecord)
	r.birth = nil
	r.records.remove(birthKey)
	return err
}

// forsake forgets a birth that failed.
func (r *Runs) forsake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.birth = nil
	r.records.remove(birthKey)
}

// undo is told of a child without an exec before it is killed, so that its end
// is not the command's, for a successor neither.
func (r *Runs) undo(pid unum.Pid) chan struct{} {
	reaped := make(chan struct{})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.undone[pid] = reaped
	r.birth = nil
	r.records.remove(birthKey)
	return reaped
}

// Started returns the process of the command that was started under an ID,
// also by a daemon before this one; unum.ErrNoProcess if none was, or it has
// been released.
func (r *Runs) Started(ctx context.Context, id string) (unum.Pid, error) {
	select {
	case <-r.settled:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for pid, x := range r.runs {
		if id != "" && x.ID == id {
			return pid, nil
		}
	}
	return 0, unum.ErrNoProcess
}

// Found lists the processes that a daemon before this one started and nobody
// has released.
func (r *Runs) Found(ctx context.Context) (found []unum.Pid, err error) {
	select {
	case <-r.settled:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for pid, x := range r.runs {
		if !x.own {
			found = append(found, pid)
		}
	}
	return found, nil
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

// Lent lists the files that clients have lent to processes that are known.
func (r *Runs) Lent() (out []FileID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range r.runs {
		out = append(out, x.Lent...)
	}
	return out
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
