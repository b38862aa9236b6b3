package deputy

import (
	"fmt"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"unum"
	"unum/seccomp"
	"unum/sys"
)

// Registry knows the stubs of one node's world.
type Registry struct {
	log *slog.Logger

	mu       sync.Mutex
	byHost   map[int]*Stub
	births   map[unum.Pid]*expectation // by world PID
	converts map[int]*expectation      // by host PID
	children map[int]*expectation      // by the parent's host PID
	awaited  map[int]chan struct{}     // by host PID; closed when it is known
	wg       sync.WaitGroup
	closed   bool
}

// expectation is a stub that is about to say hello, and what it does first.
type expectation struct {
	ch    chan *Stub
	first []*job
}

// NewRegistry makes an empty one.
func NewRegistry(log *slog.Logger) *Registry {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Registry{
		log:      log,
		byHost:   map[int]*Stub{},
		births:   map[unum.Pid]*expectation{},
		converts: map[int]*expectation{},
		children: map[int]*expectation{},
		awaited:  map[int]chan struct{}{},
	}
}

// Handle answers a notification of PRIV, and does not block. It returns false,
// without an answer, if the caller is no stub that is known or expected.
func (r *Registry) Handle(n *seccomp.Notif) bool {
	var s *Stub
	var err error
	if n.Args[0] == reasonHello {
		// A process that is known may be a new stub: a newborn whose exec was
		// placed elsewhere.
		if s, err = r.greet(n); err != nil {
			r.log.Debug("unexpected hello", "tid", n.Tid, "err", err)
		}
	}
	if s == nil {
		s = r.Find(n.Tid)
	}
	if s == nil {
		return false
	}
	s.handle(n)
	return true
}

// Known returns a channel that is closed once a process is a stub that is known.
// Who has a call for which Handle returned false, and other things to wait for,
// offers it again then: a stub that is adopted may have called before that, and
// calls no more until it is answered.
func (r *Registry) Known(host int) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	ch := r.awaited[host]
	if ch != nil {
		return ch
	}
	ch = make(chan struct{})
	if r.byHost[host] != nil {
		close(ch)
	} else {
		r.awaited[host] = ch
	}
	return ch
}

// Unawait forgets a channel of Known that nobody waits for any more.
func (r *Registry) Unawait(host int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.awaited, host)
}

// greet makes the Stub of a process that was expected.
func (r *Registry) greet(n *seccomp.Notif) (*Stub, error) {
	t, err := sys.ReadStatus(n.Tid)
	if err != nil {
		return nil, err
	}
	pid := t.Pid
	if !n.Valid() {
		// A newborn that was undone meanwhile: another one with its number may be
		// expected by now.
		return nil, fmt.Errorf("process %d of the world is gone", pid)
	}
	r.mu.Lock()
	x := r.converts[n.Tid]
	delete(r.converts, n.Tid)
	if x == nil {
		x = r.births[pid]
		delete(r.births, pid)
	}
	if x == nil {
		x = r.children[t.Ppid]
		delete(r.children, t.Ppid)
	}
	r.mu.Unlock()
	if x == nil {
		return nil, fmt.Errorf("process %d of the world is not expected", pid)
	}
	s, err := r.add(n.Tid, pid, calling, x.first)
	if err != nil {
		return nil, err
	}
	x.ch <- s
	return s, nil
}

func (r *Registry) add(host int, pid unum.Pid, st state, first []*job) (*Stub, error) {
	return r.handle(host, pid, st, first, true)
}

// handle makes the handle of a process; as a stub's it is found by its number.
func (r *Registry) handle(host int, pid unum.Pid, st state, first []*job, stub bool) (*Stub, error) {
	fd, err := sys.PidfdOpen(host)
	if err != nil {
		return nil, fmt.Errorf("pidfd of %d: %w", host, err)
	}
	s := &Stub{HostPid: host, Pid: pid, reg: r, pidfd: fd, state: st, queue: first, gone: make(chan struct{})}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		unix.Close(fd)
		return nil, os.ErrClosed
	}
	if stub {
		r.byHost[host] = s
		if ch := r.awaited[host]; ch != nil {
			close(ch)
			delete(r.awaited, host)
		}
	}
	r.wg.Add(1)
	go r.watch(s)
	return s, nil
}

// watch waits for the stub's end and forgets it.
func (r *Registry) watch(s *Stub) {
	defer r.wg.Done()
	sys.PidfdWait(s.pidfd)
	r.mu.Lock()
	if r.byHost[s.HostPid] == s {
		delete(r.byHost, s.HostPid)
	}
	r.mu.Unlock()
	s.end()
	// Getfd and the rings look at dead under the lock before they use it.
	s.mu.Lock()
	unix.Close(s.pidfd)
	s.pidfd = -1
	s.mu.Unlock()
}

// First is what an expected stub does as soon as it has said hello, before its
// owner hears of it: that saves ringing it.
type First struct {
	Inject []Injection
	Prog   *Program
	Done   func(*Result, error) // may be nil
	Given  func()               // called after the injections, however they went; may be nil
	// Begun is called when the stub was told to run the program, and so does;
	// never if it dies before. It must not block. May be nil.
	Begun func()
	// Skip is asked when it is the program's turn: true passes it over, as if it
	// had no calls. It must not block. May be nil.
	Skip func() bool
}

// jobs checks a program. One with much data is preceded by the mapping it
// needs.
func (f *First) jobs() ([]*job, error) {
	j := &job{inject: f.Inject, prog: f.Prog, done: f.Done, given: f.Given, begun: f.Begun, skip: f.Skip}
	if j.done == nil {
		j.done = func(*Result, error) {}
	}
	if f.Prog == nil {
		return []*job{j}, nil
	}
	if err := f.Prog.fits(); err != nil {
		return nil, err
	}
	if !f.Prog.big {
		return []*job{j}, nil
	}
	n := uint64(len(f.Prog.arena)+0xfff) &^ 0xfff
	m := &Program{}
	m.Must(unix.SYS_MMAP, bigBase, n, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED, ^uint64(0), 0)
	return []*job{{prog: m, done: func(*Result, error) {}}, j}, nil
}

// Expect announces a stub that will be born with PID pid. The channel gets it
// when it says hello; cancel withdraws the announcement.
func (r *Registry) Expect(pid unum.Pid, first ...First) (<-chan *Stub, func(), error) {
	return expect(r, r.births, pid, first)
}

// ExpectChild announces a child of the process parent (in the daemon's PID
// namespace) whose own number is not known beforehand. One at a time for each
// parent.
func (r *Registry) ExpectChild(parent int, first ...First) (<-chan *Stub, func(), error) {
	return expect(r, r.children, parent, first)
}

// ExpectConverted announces that process host (thread-group leader, in the
// daemon's PID namespace) will become a stub.
func (r *Registry) ExpectConverted(host int, first ...First) (<-chan *Stub, func(), error) {
	return expect(r, r.converts, host, first)
}

func expect[K comparable](r *Registry, m map[K]*expectation, key K, first []First) (<-chan *Stub, func(), error) {
	x := &expectation{ch: make(chan *Stub, 1)}
	for _, f := range first {
		js, err := f.jobs()
		if err != nil {
			return nil, nil, err
		}
		x.first = append(x.first, js...)
	}
	r.mu.Lock()
	if m[key] != nil {
		r.mu.Unlock()
		return nil, nil, fmt.Errorf("process %v is expected already: %w", key, unum.ErrExists)
	}
	m[key] = x
	r.mu.Unlock()
	return x.ch, func() {
		r.mu.Lock()
		if m[key] == x {
			delete(m, key)
		}
		r.mu.Unlock()
	}, nil
}

// Adopt takes over a stub that a daemon before this one knew: it is rung, so
// that it calls.
func (r *Registry) Adopt(host int, pid unum.Pid) (*Stub, error) {
	s, err := r.add(host, pid, waiting, nil)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.ringLocked()
	s.mu.Unlock()
	return s, nil
}

// Watch returns a handle of a process that is no stub any more, good for its
// end and for signals. A deputy that it may be for others stays known.
func (r *Registry) Watch(host int, pid unum.Pid) (*Stub, error) {
	return r.handle(host, pid, running, nil, false)
}

// Ended returns the handle of a process that is gone already.
func Ended(pid unum.Pid) *Stub {
	s := &Stub{Pid: pid, pidfd: -1, dead: true, gone: make(chan struct{})}
	close(s.gone)
	return s
}

// Find returns the stub that is process host, or nil.
func (r *Registry) Find(host int) *Stub {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byHost[host]
}

// Forget removes a stub whose process has become something else by an exec.
func (r *Registry) Forget(s *Stub) {
	r.mu.Lock()
	if r.byHost[s.HostPid] == s {
		delete(r.byHost, s.HostPid)
	}
	r.mu.Unlock()
}

// Len is the number of stubs.
func (r *Registry) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.byHost)
}
