package rexec

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
	"unum/carry/tty"
	"unum/deputy"
	"unum/sys"
)

// Guests is the guest half: the bodies that run here for other nodes.
//
// Lock order: session.mu, then Guests.mu.
type Guests struct {
	cfg Config
	mk  *maker
	log *slog.Logger

	mu       sync.Mutex
	sessions map[unum.Pid]*session
	bodies   map[unum.Pid]*body
	untold   map[uint64]*body         // ended, and home does not know yet; by operation id
	starting map[uint64]chan struct{} // births under way, by operation id; closed when decided
	seq      uint64                   // of the last event
	ledger   *ledger
	groups   *groups
	wg       sync.WaitGroup

	recBodies   records[bodyRecord]
	recSessions records[sessionRecord]
	recEvents   records[eventReq]
}

// session is one session of another node on this one: its agent has the
// session's number, is its leader, and forks the bodies.
type session struct {
	sid   unum.Pid
	home  unum.NodeID
	term  unum.NodeID // whose line is its controlling terminal; "" without one
	agent *deputy.Stub
	ends  []*tty.End // of its bodies, while a new daemon takes over

	mu      sync.Mutex // guards below; held while a group is made
	holders map[unum.Pid]*deputy.Stub
	bodies  int       // guarded by Guests.mu
	left    time.Time // when the last body went; guarded by Guests.mu

	wmu     sync.Mutex
	waiting bool          // a round of waitProgram is queued
	again   bool          // something ended meanwhile
	settled chan struct{} // closed after the first round of a new daemon; nil then
}

// bodyRecord is what a successor of the daemon must know of a body.
type bodyRecord struct {
	Place   carry.Placement
	Sid     unum.Pid // of its session's record; rootSession if it leads its own
	Path    string
	Started time.Time
	Descs   []*carry.Desc
	TTY     *tty.Desc
}

// sessionRecord is what a successor must know of a session: host PIDs of its
// agent and holders.
type sessionRecord struct {
	Home    unum.NodeID
	Term    unum.NodeID
	Agent   int
	Holders map[unum.Pid]int
}

// body is one placed process here.
type body struct {
	bodyRecord
	place  carry.Placement
	sess   *session
	stub   *deputy.Stub // its handle: end and pidfd
	guests []carry.Guest
	once   [16]uint64 // the last signals that were delivered, by their id
	at     int
	after  uint64 // the last signal to its group

	ready <-chan struct{} // closed when its birth is decided; stub is nil if it failed
	last  <-chan struct{} // closed when the event before has been told; guarded by Guests.mu
	// born: what its agent tells of its number from now on is about it, and not
	// about one before it that was undone; guarded by Guests.mu
	born bool
	// doubted: found in the records and nowhere else, by a new daemon
	doubted bool

	news uint64 // Seq of the last event; guarded by Guests.mu
}

func newGuests(cfg Config, mk *maker, gs *groups) *Guests {
	return &Guests{
		cfg: cfg, mk: mk, log: cfg.Log, groups: gs,
		sessions: map[unum.Pid]*session{},
		bodies:   map[unum.Pid]*body{}, untold: map[uint64]*body{}, starting: map[uint64]chan struct{}{},
	}
}

func (g *Guests) openRecords() (err error) {
	dir := filepath.Join(g.cfg.StateDir, "hosted")
	if g.recBodies, err = openRecords[bodyRecord](filepath.Join(dir, "bodies")); err != nil {
		return err
	}
	if g.recSessions, err = openRecords[sessionRecord](filepath.Join(dir, "sessions")); err != nil {
		return err
	}
	if g.recEvents, err = openRecords[eventReq](filepath.Join(dir, "events")); err != nil {
		return err
	}
	if g.ledger, err = openLedger(filepath.Join(dir, "signals")); err != nil {
		return err
	}
	for _, id := range g.ledger.groups() {
		g.groups.add(id)
	}
	return nil
}

func (b *body) key() string { return b.place.Pid.String() }

// note writes a session down. Preconditions: s.mu is held.
func (g *Guests) note(s *session) error {
	r := &sessionRecord{Home: s.home, Term: s.term, Agent: s.agent.HostPid, Holders: map[unum.Pid]int{}}
	for p, h := range s.holders {
		r.Holders[p] = h.HostPid
	}
	return g.recSessions.save(s.sid.String(), r)
}

// rootSession is the pseudo session of bodies that lead their own.
const rootSession unum.Pid = 0

// session finds or makes the session that a body goes into.
func (g *Guests) session(ctx context.Context, req *startReq) (*session, error) {
	sid := req.Spec.Sid
	if req.Spec.Pid == sid {
		sid = rootSession
	}
	g.mu.Lock()
	s := g.sessions[sid]
	if s == nil {
		s = &session{sid: sid, home: req.Place.Home, holders: map[unum.Pid]*deputy.Stub{}}
		g.sessions[sid] = s
	}
	s.bodies++
	g.mu.Unlock()

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agent != nil && !s.agent.Dead() {
		if req.end != nil && s.sid != rootSession && s.term != req.Place.Home {
			// A chain of placements has brought the session here by another node,
			// and its controlling terminal is that node's line.
			g.leave(s)
			return nil, fmt.Errorf("session %d has its terminal by way of %s there: %w", s.sid, s.term, errBusy)
		}
		return s, nil
	}
	// A first one, or one that somebody has killed with its group.
	agent, err := g.makeAgent(ctx, s, req)
	if err != nil {
		g.leave(s)
		return nil, err
	}
	s.agent = agent
	if err := g.note(s); err != nil {
		g.leave(s)
		return nil, err
	}
	s.watch(g.cfg.Cookie, g.log, g.ended)
	return s, nil
}

func (g *Guests) makeAgent(ctx context.Context, s *session, req *startReq) (*deputy.Stub, error) {
	if s.sid == rootSession {
		// Its own agent, since the root agent's children are agents.
		return g.mk.agent(ctx, g.mk.root, 0, false, true, nil)
	}
	if req.end == nil || req.end.HasAgent() {
		return g.mk.agent(ctx, g.mk.root, s.sid, true, false, nil)
	}
	slave, err := req.end.Slave()
	if err != nil {
		return nil, fmt.Errorf("terminal of session %d: %w", s.sid, err)
	}
	defer slave.Close()
	agent, err := g.mk.agent(ctx, g.mk.root, s.sid, true, false, slave)
	if err == nil {
		s.term = req.Place.Home
		req.end.SetAgent(&sessionAgent{agent: agent, cookie: g.cfg.Cookie})
	}
	return agent, err
}

// leave undoes session's count.
func (g *Guests) leave(s *session) {
	g.mu.Lock()
	s.bodies--
	s.left = time.Now()
	g.mu.Unlock()
}

// group makes sure that the body's process group exists. It returns the holder
// that must become the body, if its PID is the group's and is held.
func (g *Guests) group(ctx context.Context, s *session, spec *Spec) (*deputy.Stub, error) {
	for {
		s.mu.Lock()
		if spec.Pgid == spec.Pid {
			h, err := g.takeHolder(s, spec.Pid)
			s.mu.Unlock()
			return h, err
		}
		if h := s.holders[spec.Pgid]; h != nil && h.Dead() {
			delete(s.holders, spec.Pgid) // killed with its group
		}
		if spec.Pgid == spec.Sid || s.holders[spec.Pgid] != nil {
			s.mu.Unlock()
			return nil, nil
		}
		if l := g.groupLeader(spec.Pgid); l != nil {
			// It is here, or about to be.
			s.mu.Unlock()
			<-l.ready
			if l.stub != nil {
				return nil, nil
			}
			continue
		}
		h, err := g.mk.agent(ctx, s.agent, spec.Pgid, false, true, nil)
		if err == nil {
			s.holders[spec.Pgid] = h
			err = g.note(s)
		}
		s.mu.Unlock()
		if err != nil {
			return nil, fmt.Errorf("process group %d: %w", spec.Pgid, err)
		}
		return nil, nil
	}
}

// takeHolder returns the stub that has the number of a group's leader, if there
// is one: it becomes the leader. Preconditions: s.mu is held.
func (g *Guests) takeHolder(s *session, pid unum.Pid) (*deputy.Stub, error) {
	h := s.holders[pid]
	delete(s.holders, pid)
	if h == nil || h.Dead() {
		return nil, nil
	}
	return h, g.note(s)
}

// groupLeader returns the body here that leads a group, so that the group
// exists, or will, without a holder.
func (g *Guests) groupLeader(pgid unum.Pid) *body {
	g.mu.Lock()
	defer g.mu.Unlock()
	if b := g.bodies[pgid]; b != nil && b.place.Pgid == pgid {
		return b
	}
	return nil
}

// start answers rexec.start. Home asks once more if its daemon was restarted
// while it asked: also while the first birth is under way.
func (g *Guests) start(ctx context.Context, req *startReq) *startRes {
	decided := make(chan struct{})
	for {
		g.mu.Lock()
		first := g.starting[req.Place.ID]
		if first == nil {
			g.starting[req.Place.ID] = decided
			g.mu.Unlock()
			break
		}
		g.mu.Unlock()
		<-first
	}
	defer func() {
		g.mu.Lock()
		delete(g.starting, req.Place.ID)
		g.mu.Unlock()
		close(decided)
	}()
	if b := g.known(req.Place); b != nil {
		<-b.ready
		if b.stub != nil {
			return &startRes{}
		}
		if !b.doubted {
			return &startRes{Refused: "its start failed"}
		}
		// It was written down by the daemon before this one, and never born.
	}
	err := g.birth(ctx, req)
	var ex *execError
	switch {
	case err == nil:
		return &startRes{}
	case errors.As(err, &ex):
		return &startRes{Errno: int(ex.errno)}
	}
	g.log.Info("a body is refused", "pid", req.Spec.Pid, "from", req.Place.Home, "path", req.Spec.Path, "err", err)
	return &startRes{Refused: err.Error()}
}

func (g *Guests) birth(ctx context.Context, req *startReq) (err error) {
	spec := &req.Spec
	if err := g.sees(spec); err != nil {
		return err
	}
	spec.ctty = -1 // a body's session has its terminal from the agent
	if req.TTY != nil {
		if req.end, err = g.cfg.Terminal.Guests.Session(ctx, req.Place, req.TTY); err != nil {
			return fmt.Errorf("terminal of session %d: %w", spec.Sid, err)
		}
	}
	s, err := g.session(ctx, req)
	if err != nil {
		if req.end != nil {
			req.end.Close()
		}
		return err
	}
	b := &body{
		bodyRecord: bodyRecord{
			Place: req.Place, Sid: s.sid, Path: spec.Path, Started: time.Now(), Descs: req.Descs, TTY: req.TTY,
		},
		place: req.Place, sess: s,
	}
	ok := false
	defer func() {
		if ok {
			return
		}
		for _, c := range b.guests {
			c.Started(false)
			c.Close()
		}
		g.mu.Lock()
		if g.bodies[spec.Pid] == b {
			delete(g.bodies, spec.Pid)
			g.recBodies.remove(b.key())
		}
		g.mu.Unlock()
		g.leave(s)
	}()
	born := func() {
		g.mu.Lock()
		b.born = true
		g.mu.Unlock()
	}
	bi := &birth{spec: spec, parent: s.agent, turn: born}
	if req.end != nil {
		b.guests = append(b.guests, req.end)
		if spec.Pid == spec.Sid {
			// It leads its session, so it takes the terminal itself.
			slave, err := req.end.Slave()
			if err != nil {
				return fmt.Errorf("terminal of session %d: %w", spec.Sid, err)
			}
			spec.ctty = cttyNum
			bi.locals = append(bi.locals, local{Local: carry.Local{File: slave}, nums: []int{cttyNum}, cloexec: true})
			req.end.SetAgent(leader{})
		}
	}
	for _, d := range req.Descs {
		k, err := g.cfg.Carry.Kind(d.Kind)
		if err != nil {
			return err
		}
		c, err := k.Land(ctx, req.Place, d)
		if err != nil {
			return fmt.Errorf("fd %d (%s): %w", d.Nums[0], d.Kind, err)
		}
		b.guests = append(b.guests, c)
		bi.locals = append(bi.locals, local{Local: c.Local(), nums: d.Nums})
	}
	defer func() {
		for _, l := range bi.locals {
			if l.File != nil {
				l.File.Close()
			}
		}
	}()
	// Known before it runs, since its end may be reaped before make returns; and
	// before its group is looked for, so that nobody makes a holder meanwhile.
	g.mu.Lock()
	if g.bodies[spec.Pid] != nil {
		g.mu.Unlock()
		return fmt.Errorf("body %d: %w", spec.Pid, errBusy)
	}
	g.bodies[spec.Pid] = b
	ready := make(chan struct{})
	b.ready = ready
	g.mu.Unlock()
	defer close(ready)
	if bi.holder, err = g.group(ctx, s, spec); err != nil {
		return err
	}
	if req.end != nil {
		spec.fg = req.TTY.Fg && req.TTY.Ctty && spec.Pgid == spec.Pid && spec.Pid != spec.Sid
		if err := req.end.GroupReady(ctx); err != nil {
			return fmt.Errorf("foreground group of session %d: %w", spec.Sid, err)
		}
	}
	if err := g.recBodies.save(b.key(), &b.bodyRecord); err != nil {
		return err
	}
	if bi.holder != nil {
		born()
	}
	if b.stub, err = g.mk.make(ctx, bi); err != nil {
		return err
	}
	for _, c := range b.guests {
		c.Started(true)
	}
	ok = true
	return nil
}

// Codes of SIGCHLD (man 2 sigaction).
const (
	cldExited = 1 + iota
	cldKilled
	cldDumped
	cldTrapped
	cldStopped
	cldContinued
)

// ended hands an event of a body on to its home. It does not block.
func (g *Guests) ended(pid unum.Pid, si *sys.Siginfo, u unum.Usage) {
	g.mu.Lock()
	b := g.bodies[pid]
	if b == nil || !b.born {
		g.mu.Unlock()
		return // a holder, or a birth that failed
	}
	e := &eventReq{ID: b.place.ID, Pid: pid, Status: int(si.Status()), Usage: u}
	switch si.Code() {
	case cldExited:
		e.Kind = exited
	case cldKilled, cldDumped:
		e.Kind, e.Core = killed, si.Code() == cldDumped
	case cldStopped, cldTrapped:
		e.Kind = stopped
	case cldContinued:
		e.Kind = continued
	}
	g.seq = max(g.seq+1, monotonic())
	e.Seq = g.seq
	b.news = e.Seq
	final := e.Kind == exited || e.Kind == killed
	if final {
		e.After = b.after
		delete(g.bodies, pid)
		g.untold[b.place.ID] = b
	}
	// Its agent forgets it with our answer. Of a body that lives the last news
	// is enough.
	if err := g.recEvents.save(b.key(), e); err != nil {
		g.log.Error("write down what a body did", "pid", pid, "err", err)
	}
	prev := b.last
	done := make(chan struct{})
	b.last = done
	g.wg.Add(1)
	g.mu.Unlock()
	go func() {
		defer g.wg.Done()
		defer close(done)
		<-b.ready
		if prev != nil {
			<-prev
		}
		g.tell(b, e, final)
	}()
}

// tell flushes what the body wrote and tells home; in order for each body.
func (g *Guests) tell(b *body, e *eventReq, final bool) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if e.Kind != continued {
		var wg sync.WaitGroup
		for _, c := range b.guests {
			wg.Go(func() {
				if err := c.Flush(ctx, final); err != nil {
					g.log.Warn("flush a descriptor", "pid", e.Pid, "err", err)
				}
			})
		}
		wg.Wait()
	}
	if b.stub != nil {
		if final && g.cfg.Reaped != nil {
			e.Usage.Add(g.cfg.Reaped(b.stub.HostPid))
		}
		peer, err := g.cfg.Peer(b.place.Home)
		if err == nil {
			_, err = unum.Call[struct{}](ctx, peer, "rexec.event", e)
		}
		if err != nil {
			g.log.Warn("tell home", "pid", e.Pid, "event", e.Kind, "home", b.place.Home, "err", err)
		}
	}
	if !final {
		g.mu.Lock()
		if b.news == e.Seq {
			g.recEvents.remove(b.key())
		}
		g.mu.Unlock()
		return
	}
	for _, c := range b.guests {
		c.Close()
	}
	g.recBodies.remove(b.key())
	g.recEvents.remove(b.key())
	g.mu.Lock()
	delete(g.untold, b.place.ID)
	g.mu.Unlock()
	g.leave(b.sess)
	g.retire(b.sess)
}

// monotonic is a clock of this node that never goes back, also from one daemon
// to the next.
func monotonic() uint64 {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return uint64(ts.Nano())
}

// known returns the body of a placement, also if it has ended and home does
// not know.
func (g *Guests) known(pl carry.Placement) *body {
	g.mu.Lock()
	defer g.mu.Unlock()
	if b := g.bodies[pl.Pid]; b != nil && b.place.ID == pl.ID {
		return b
	}
	return g.untold[pl.ID]
}

// signal delivers one signal to a body.
func (g *Guests) signal(req *signalReq) error {
	g.mu.Lock()
	b := g.bodies[req.Pid]
	if b == nil || b.place.ID != req.ID {
		g.mu.Unlock()
		return unum.ErrNoProcess
	}
	group := deputy.GroupOf(&req.Info)
	if req.Once != 0 && b.delivered(req.Once) || group != 0 && b.delivered(group) {
		g.mu.Unlock()
		return nil
	}
	if group != 0 {
		b.after = group
	}
	g.mu.Unlock()
	<-b.ready
	if b.stub == nil {
		return unum.ErrNoProcess
	}
	info := &req.Info
	if group != 0 && !isStub(b.stub.HostPid) {
		// The mark is for deputies: it has not been placed again.
		info = sys.MakeSiginfo(req.Info.Signo(), -1 /* SI_QUEUE */, req.Info.Pid(), req.Info.Uid())
	}
	if info.Code() >= 0 {
		// The kernel does not let one process pretend another's kill; a queued
		// signal carries the true sender's numbers.
		info = nil
		if p := req.Info.Pid(); req.Info.Code() == 0 && p != 0 {
			info = sys.MakeSiginfo(req.Info.Signo(), -1 /* SI_QUEUE */, p, req.Info.Uid())
		}
	}
	// Its deputy runs and so should it: this signal has swept away a SIGCONT
	// that waited in the deputy (signal(7)).
	if req.Once != 0 && stops(req.Info.Signo()) {
		if t, err := sys.ReadTask(b.stub.HostPid); err == nil && t.State == 'T' {
			b.stub.Signal(unix.SIGCONT, nil)
		}
	}
	if err := g.send(b, req.Info.Signo(), info); errors.Is(err, deputy.ErrGone) {
		return unum.ErrNoProcess
	} else if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, id := range [2]uint64{req.Once, group} {
		if id != 0 {
			g.ledger.add(req.ID, id)
		}
	}
	return nil
}

func stops(sig unix.Signal) bool {
	return sig == unix.SIGTSTP || sig == unix.SIGTTIN || sig == unix.SIGTTOU || sig == unix.SIGSTOP
}

// delivered says whether the signal with this id was delivered before, and
// remembers it. A home daemon that was restarted may tell its last one again.
func (b *body) delivered(id uint64) bool {
	for _, o := range b.once {
		if o == id {
			return true
		}
	}
	b.once[b.at] = id
	b.at = (b.at + 1) % len(b.once)
	return false
}

// idle is how long a session without bodies keeps its agent.
const idle = 2 * time.Second

// retire ends a session's agent and holders when no process of the session is
// left here. The last body's children may live on: then it stays, and is
// looked at again when another body of the session ends, or by Sweep.
func (g *Guests) retire(s *session) {
	g.mu.Lock()
	empty := s.bodies == 0 && s.sid != rootSession
	g.mu.Unlock()
	if empty {
		time.AfterFunc(idle, func() {
			g.mu.Lock()
			unused := s.unused()
			g.mu.Unlock()
			if unused {
				g.sweep(s)
			}
		})
	}
}

// unused says whether a session has had no bodies for so long that its agent is
// to end: the next command of a shell that runs one after the other finds it.
// Preconditions: Guests.mu is held.
func (s *session) unused() bool {
	return s.bodies == 0 && s.sid != rootSession && time.Since(s.left) >= idle
}

// Sweep looks at all sessions.
func (g *Guests) Sweep() {
	g.mu.Lock()
	var all []*session
	for _, s := range g.sessions {
		if s.unused() {
			all = append(all, s)
		}
	}
	g.mu.Unlock()
	for _, s := range all {
		g.sweep(s)
	}
}

func (g *Guests) sweep(s *session) {
	pids, err := g.cfg.WorldPids()
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.busy(s) || s.agent == nil {
		return
	}
	ours := map[int]bool{s.agent.HostPid: true}
	for _, h := range s.holders {
		ours[h.HostPid] = true
	}
	for _, p := range pids {
		if ours[p] {
			continue
		}
		if t, err := sys.ReadTask(p); err == nil && t.Sid == s.sid && t.State != 'Z' {
			return
		}
	}
	for _, h := range s.holders {
		h.Kill()
		<-h.Gone()
	}
	// The holders' numbers and its own are free again when it is gone, for who
	// waits for s.mu.
	s.agent.Kill()
	<-s.agent.Gone()
	s.agent, s.holders = nil, map[unum.Pid]*deputy.Stub{}
	g.recSessions.remove(s.sid.String())
	g.cfg.Terminal.Guests.EndSession(s.home, s.sid)
	g.mu.Lock()
	defer g.mu.Unlock()
	if s.bodies == 0 && g.sessions[s.sid] == s {
		delete(g.sessions, s.sid)
	}
}

// busy says whether a session has bodies, or is about to.
func (g *Guests) busy(s *session) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return s.bodies != 0 || g.sessions[s.sid] != s
}
