package deputy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"unum"
	"unum/seccomp"
	"unum/sys"
)

// ErrGone is returned by Run when the stub died before the program was done.
var ErrGone = errors.New("the deputy is gone")

// Injection puts a duplicate of File into the stub's table, under number Num
// (the lowest free one if negative).
type Injection struct {
	File    *os.File
	Num     int
	Cloexec bool
}

// job is something a stub is to do: first the injections, then the program,
// unless an injection failed.
type job struct {
	inject []Injection
	prog   *Program
	done   func(*Result, error)
	given  func() // after the injections, however they went; may be nil
	begun  func() // when the stub was told to run the program; may be nil
	skip   func() bool
}

// Stub is one stub process as the daemon sees it.
//
//	waiting ──ring──▶ calling ──▶ running ──▶ calling …
//	   ▲                 │
//	   └─────────────────┘ nothing to do
type Stub struct {
	HostPid int
	Pid     unum.Pid

	reg   *Registry
	pidfd int // -1 once closed

	mu       sync.Mutex
	state    state
	rung     bool
	queue    []*job
	cur      *job
	onSignal func(*Signal)
	decided  bool           // OnSignal was called
	held     *seccomp.Notif // what came before and waits for it
	onOrphan func(*Result)
	gone     chan struct{} // closed when the process has ended
	dead     bool
}

type state int

const (
	waiting state = iota // in rt_sigtimedwait, as far as is known
	calling              // its PRIV is being answered
	running              // it runs a program
)

// Gone is closed when the stub's process has ended, by whatever means.
func (s *Stub) Gone() <-chan struct{} { return s.gone }

// Dead says whether the stub's process was seen to end.
func (s *Stub) Dead() bool {
	select {
	case <-s.gone:
		return true
	default:
		return false
	}
}

// Signal sends a signal to the stub's process; info may be nil.
func (s *Stub) Signal(sig unix.Signal, info *sys.Siginfo) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return ErrGone
	}
	err := sys.PidfdSendSignal(s.pidfd, sig, info)
	if errors.Is(err, unix.EAGAIN) {
		// The user's queue is full; a signal without details needs no room.
		err = sys.PidfdSendSignal(s.pidfd, sig, nil)
	}
	if errors.Is(err, unix.ESRCH) {
		return ErrGone
	}
	return err
}

// Signal is one that has reached a stub, the ring excepted. The stub stands in
// its call until Done: so a signal that was not dealt with when the daemon died
// is told again to the next one, with the same ID.
type Signal struct {
	Info sys.Siginfo
	ID   uint64

	s *Stub
	n *seccomp.Notif
}

// Done lets the stub go on. It must be called once.
func (g *Signal) Done() { g.s.answer(g.n) }

// OnSignal sets who is told of signals; nil drops them. It is called on the
// receiving goroutine, in order, and must not block. A signal that comes before
// the first OnSignal waits for it, and the stub with it: one that reaches a
// caller in the midst of its conversion is told by the deputy. The same holds
// for the result of a program that a daemon before this one had begun: OnOrphan
// comes first.
func (s *Stub) OnSignal(f func(*Signal)) {
	s.mu.Lock()
	s.onSignal, s.decided = f, true
	held := s.held
	s.held = nil
	s.mu.Unlock()
	if held != nil {
		s.handle(held)
	}
}

// OnOrphan sets who gets the result of a program that a daemon before this one
// had begun.
func (s *Stub) OnOrphan(f func(*Result)) {
	s.mu.Lock()
	s.onOrphan = f
	s.mu.Unlock()
}

// Run makes the stub run a program and waits for the result. An error of a
// call is in the result (Result.Err); err is about the stub.
func (s *Stub) Run(ctx context.Context, p *Program) (*Result, error) {
	return s.Do(ctx, nil, p)
}

// Do makes the injections, then runs the program, if any. Jobs of one stub are
// done in order.
func (s *Stub) Do(ctx context.Context, inject []Injection, p *Program) (*Result, error) {
	type answer struct {
		r   *Result
		err error
	}
	ch := make(chan answer, 1)
	if err := s.Start(inject, p, func(r *Result, err error) { ch <- answer{r, err} }); err != nil {
		return nil, err
	}
	select {
	case a := <-ch:
		return a.r, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Start is Do without waiting. done is called once, on a goroutine that must
// not be blocked.
func (s *Stub) Start(inject []Injection, p *Program, done func(*Result, error)) error {
	return s.Begin(First{Inject: inject, Prog: p, Done: done})
}

// Begin is Start for everything that a First can say.
func (s *Stub) Begin(f First) error {
	js, err := f.jobs()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return ErrGone
	}
	s.queue = append(s.queue, js...)
	s.ringLocked()
	return nil
}

// ringLocked wakes a stub that waits. The ring is level-triggered: however
// many come, the stub makes one call and finds the whole queue.
func (s *Stub) ringLocked() {
	if s.state != waiting || s.rung || s.dead {
		return
	}
	info := sys.MakeSiginfo(ringSignal, ringCode, 0, 0)
	if err := sys.PidfdSendSignal(s.pidfd, ringSignal, info); err != nil {
		// EAGAIN: the user's queue of real-time signals is full. A standard
		// signal needs no room; the stub calls on any signal.
		if errors.Is(err, unix.EAGAIN) {
			err = sys.PidfdSendSignal(s.pidfd, unix.SIGURG, nil)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) {
			s.reg.log.Error("ring a deputy", "pid", s.Pid, "err", err)
			return
		}
	}
	s.rung = true
}

// handle answers one PRIV of the stub.
func (s *Stub) handle(n *seccomp.Notif) {
	s.mu.Lock()
	s.state = calling
	s.rung = false
	var finished *job
	var result *Result
	var err error
	var orphan func(*Result)
	var signal func(*Signal)
	var info sys.Siginfo
	at := uint64(0) // where a siginfo lies
	switch n.Args[0] {
	case reasonRan:
		if s.cur == nil && !s.decided {
			s.held = n
			s.mu.Unlock()
			return
		}
		finished = s.cur
		s.cur = nil
		calls := maxCalls
		if finished != nil {
			calls = finished.prog.Len()
		} else {
			orphan = s.onOrphan
		}
		if result, err = s.readResult(calls); err == nil && result.took {
			at = FirstData
		}
	case reasonSignal:
		at = dataBase + offInfo
	}
	if at != 0 {
		if _, e := sys.ReadMem(s.HostPid, at, info[:]); e == nil && (info.Signo() != ringSignal || info.Code() != ringCode) {
			if signal = s.onSignal; !s.decided {
				s.held = n
				s.mu.Unlock()
				return
			}
		}
	}
	s.mu.Unlock()
	switch {
	case finished != nil:
		finished.done(result, err)
	case orphan != nil && err == nil:
		orphan(result)
	}
	if signal != nil {
		signal(&Signal{Info: info, ID: n.ID, s: s, n: n})
		return
	}
	s.answer(n)
}

// answer gives the stub its next job, or lets it wait.
func (s *Stub) answer(n *seccomp.Notif) {
	for {
		s.mu.Lock()
		if len(s.queue) == 0 {
			s.state = waiting
			s.mu.Unlock()
			n.Return(cmdWait)
			return
		}
		j := s.queue[0]
		s.queue = s.queue[1:]
		s.mu.Unlock()
		if len(j.inject) > 0 {
			// Putting a descriptor into another table waits for that process to
			// run; not on the receiving goroutine.
			go s.inject(n, j)
			return
		}
		if s.begin(n, j) {
			return
		}
	}
}

func (s *Stub) inject(n *seccomp.Notif, j *job) {
	if j.given != nil {
		defer j.given()
	}
	for _, in := range j.inject {
		if _, err := n.AddFD(in.File, in.Num, in.Cloexec); err != nil {
			j.done(nil, fmt.Errorf("give descriptor %d to %d: %w", in.Num, s.Pid, err))
			s.answer(n)
			return
		}
	}
	if j.prog == nil {
		j.done(&Result{}, nil)
		s.answer(n)
		return
	}
	if !s.begin(n, j) {
		s.answer(n)
	}
}

// begin writes the job's program and sets the stub going. It reports whether
// the notification was answered.
func (s *Stub) begin(n *seccomp.Notif, j *job) bool {
	if j.prog == nil || j.skip != nil && j.skip() {
		j.done(&Result{}, nil)
		return false
	}
	err := sys.WriteMem(s.HostPid,
		sys.Piece{Addr: dataBase + offTag, Data: j.prog.table()},
		sys.Piece{Addr: j.prog.base(), Data: j.prog.arena})
	if err != nil {
		j.done(nil, fmt.Errorf("write to deputy %d: %w", s.Pid, err))
		return false
	}
	s.mu.Lock()
	s.cur = j
	s.state = running
	s.mu.Unlock()
	n.Return(cmdRun)
	if j.begun != nil {
		j.begun()
	}
	return true
}

func (s *Stub) readResult(calls int) (*Result, error) {
	b := make([]byte, offTable-offTag+calls*entrySize)
	if _, err := sys.ReadMem(s.HostPid, dataBase+offTag, b); err != nil {
		return nil, fmt.Errorf("read from deputy %d: %w", s.Pid, err)
	}
	return parseResult(b), nil
}

// Mem reads the arena or any other memory of the stub, for results that calls
// left there. Only the job's done function may rely on what it finds.
func (s *Stub) Mem(addr uint64, b []byte) error {
	_, err := sys.ReadMem(s.HostPid, addr, b)
	return err
}

// Last returns the tag of the program that was written last, by this daemon or
// one before it, and whether the stub has begun it: then it goes through with
// it, whatever becomes of the daemon.
func (s *Stub) Last() (tag uint64, begun bool, err error) {
	b := make([]byte, offDone+8-offTag)
	if _, err := sys.ReadMem(s.HostPid, dataBase+offTag, b); err != nil {
		return 0, false, fmt.Errorf("read from deputy %d: %w", s.Pid, err)
	}
	le := binary.LittleEndian
	return le.Uint64(b), le.Uint64(b[offDone-offTag:]) != notBegun, nil
}

// Getfd duplicates a descriptor that the stub holds.
func (s *Stub) Getfd(num int) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return nil, ErrGone
	}
	return sys.PidfdGetfd(s.pidfd, num)
}

// Pidfd duplicates the pidfd of the stub's process: ErrGone once it has ended.
// The caller closes it.
func (s *Stub) Pidfd() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return -1, ErrGone
	}
	return unix.FcntlInt(uintptr(s.pidfd), unix.F_DUPFD_CLOEXEC, 0)
}

// Kill ends the stub's process by SIGKILL.
func (s *Stub) Kill() error {
	if err := s.Signal(unix.SIGKILL, nil); err != nil && !errors.Is(err, ErrGone) {
		return err
	}
	return nil
}

// end is called once, when the process is seen to have ended.
func (s *Stub) end() {
	s.mu.Lock()
	s.dead = true
	left := s.queue
	if s.cur != nil {
		left = append(left, s.cur)
	}
	s.queue, s.cur = nil, nil
	s.mu.Unlock()
	for _, j := range left {
		j.done(nil, ErrGone)
	}
	close(s.gone)
}
