package rexec

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
	"unum/carry/tty"
	"unum/deputy"
	"unum/ptrace"
	"unum/sched"
	"unum/seccomp"
	"unum/sys"
)

// Homes is the home half: the deputies of processes placed elsewhere.
type Homes struct {
	cfg     Config
	log     *slog.Logger
	stub    *os.File
	groups  *groups
	tracer  *ptrace.Thread
	nextID  atomic.Uint64
	records records[placedRecord]
	reapers *reapers
	nursed  *nurseries // of bodies here
	dumps   string     // working directory of deputies that die with a core

	depth  int               // of PID namespaces, of the world's processes
	spaces map[string]string // namespaces of the world, by name

	mu      sync.Mutex
	placed  map[unum.Pid]*placed
	redo    map[unum.Pid]*placed // placements whose caller will issue its exec again
	through map[int]uint64       // start times, by host TID, of callers that issue again an exec that stays here
	whys    whys
	wg      sync.WaitGroup
}

// placedRecord is what a successor of the daemon must know of a placement.
type placedRecord struct {
	Place  carry.Placement
	Host   int    // PID in the daemon's namespace
	Start  uint64 // start time of that process: it is the same one
	Path   string
	Argv   []string
	Uid    uint32
	Since  time.Time
	Why    string
	Parent int // host PID
	Descs  []*carry.Desc
	TTY    *tty.Desc
	// Pending were pending at the exec. The body has them from birth; they are
	// pending in the deputy too, and not passed on from there.
	Pending uint64
}

// placed is one process of this node whose body is elsewhere.
//
//	starting ──▶ running ⇄ stopped ──▶ ended
type placed struct {
	placedRecord
	place   carry.Placement
	req     *startReq // nil once a successor has taken over
	peer    unum.Peer
	homes   []carry.Home
	stub    *deputy.Stub
	signals chan *deputy.Signal
	ready   chan struct{} // closed when the deputy stands, or never will (stub is nil)
	done    chan struct{} // closed when the deputy is gone
	over    chan struct{} // closed when its body is too, or has been told to
	ctx     context.Context
	cancel  context.CancelFunc // when the deputy is gone

	order   sync.Mutex // held while a signal is told to the guest
	forking sync.Mutex // held while an orphan of the body gets its deputy

	mu     sync.Mutex
	ended  *eventReq
	seen   uint64 // Seq of the last stop that the deputy was given
	inStop bool   // the deputy stops, or is stopped, as its body is
	turns  uint64 // how often it was stopped, or told to go on; see stop.go
}

func (p *placed) key() string { return p.place.Pid.String() }

func (h *Homes) newPlaced(r *placedRecord, peer unum.Peer) *placed {
	p := &placed{
		placedRecord: *r, place: r.Place, peer: peer,
		signals: make(chan *deputy.Signal, 1), ready: make(chan struct{}), done: make(chan struct{}), over: make(chan struct{}),
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

func newHomes(cfg Config, stub *os.File, gs *groups) (*Homes, error) {
	h := &Homes{
		cfg: cfg, log: cfg.Log, stub: stub, groups: gs,
		tracer: ptrace.NewThread(),
		dumps:  filepath.Join(cfg.StateDir, "cores"),
		placed: map[unum.Pid]*placed{}, redo: map[unum.Pid]*placed{}, through: map[int]uint64{},
	}
	var err error
	if h.records, err = openRecords[placedRecord](filepath.Join(cfg.StateDir, "placed")); err != nil {
		return nil, err
	}
	if h.reapers, err = openReapers(cfg.StateDir); err != nil {
		return nil, err
	}
	// Unique in the cluster's life: the node's index, and a clock that has
	// advanced since the daemon before this one.
	h.nextID.Store(uint64(cfg.Index)<<58 | uint64(time.Now().UnixNano())>>6)
	return h, nil
}

// Exec answers a trapped execve or execveat, and does not block. What there is
// more to do it returns: it may take long.
func (h *Homes) Exec(n *seccomp.Notif) (more func()) {
	if h.letThrough(n) || h.redone(n) {
		return nil
	}
	hint := h.hint(n)
	if !h.cfg.Settled(hint) {
		h.wg.Go(func() {
			h.cfg.Settle(context.Background(), hint)
			if more := h.decide(n, hint); more != nil {
				more()
			}
		})
		return nil
	}
	return h.decide(n, hint)
}

func (h *Homes) decide(n *seccomp.Notif, hint string) (more func()) {
	c, why := h.look(n, hint)
	if c == nil {
		if why != "" {
			h.whys.add(why, n.Tid)
		}
		n.Continue()
		return nil
	}
	h.wg.Add(1)
	return func() {
		defer h.wg.Done()
		h.place(c)
	}
}

// place carries out a decision to place. Until the guest has answered, any
// failure means that the exec runs here.
func (h *Homes) place(c *caller) {
	ctx := context.Background()
	p, err := h.prepare(ctx, c)
	if err != nil {
		h.stay(c, err)
		return
	}
	h.ask(ctx, c, p)
}

// ask has the guest make the body, then converts the caller.
func (h *Homes) ask(ctx context.Context, c *caller, p *placed) {
	stop := h.hold(c)
	defer stop()
	res, err := unum.Call[startRes](ctx, p.peer, "rexec.start", p.req)
	switch {
	case errors.Is(err, unum.ErrUnanswered):
		// Its body may have run, and done something: it must not do that twice.
		h.abandon(p)
		h.perish(c, fmt.Sprintf("killed: %s was lost while it was started there", p.place.Guest))
		return
	case err != nil:
		h.abandon(p)
		h.stay(c, err)
		return
	case res.Refused != "":
		h.abandon(p)
		h.stay(c, fmt.Errorf("%s refused: %s", p.place.Guest, res.Refused))
		return
	case res.Errno != 0:
		h.abandon(p)
		h.cfg.Failed(c.task.Pid)
		h.release(c, unix.Errno(res.Errno))
		return
	}
	if err := h.convert(ctx, c, p); err != nil {
		h.log.Warn("convert", "pid", p.place.Pid, "node", p.place.Guest, "err", err)
		h.signalBody(p, unix.SIGKILL)
		h.abandon(p)
		h.cfg.Failed(c.task.Pid)
	}
}

// stay lets the exec run here after all.
func (h *Homes) stay(c *caller, err error) {
	h.cfg.Failed(c.task.Pid)
	h.whys.set(c.task.Pid, fmt.Sprintf("stayed on %s: %v", h.cfg.Node, err))
	h.log.Info("an exec stays home", "pid", c.task.Pid, "path", c.path, "err", err)
	h.release(c, 0)
}

// abandon forgets a placement that did not come to be.
func (h *Homes) abandon(p *placed) {
	close(p.ready)
	for _, c := range p.homes {
		c.Close()
	}
	h.forget(p)
	close(p.over)
}

func (h *Homes) forget(p *placed) {
	h.records.remove(p.key())
	h.mu.Lock()
	if h.placed[p.place.Pid] == p {
		delete(h.placed, p.place.Pid)
	}
	h.mu.Unlock()
}

// described is a caller's descriptors and its controlling terminal.
type described struct {
	pidfd int // the caller's; -1 if it could not be opened
	descs []*carry.Desc
	term  *tty.Desc
	err   error
}

func (h *Homes) describe(ctx context.Context, c *caller) *described {
	d := &described{}
	if d.pidfd, d.err = sys.PidfdOpen(c.task.Tgid); d.err != nil {
		d.pidfd = -1
		return d
	}
	proc := &carry.Proc{HostPid: c.task.Tgid, Pid: c.task.Pid, PidFD: d.pidfd, Uid: c.task.Uid[1]}
	if d.descs, d.err = h.cfg.Carry.Describe(ctx, proc); d.err == nil && c.task.TTY != 0 {
		d.term, d.err = h.cfg.Terminal.Homes.Describe(proc)
	}
	return d
}

// prepare gathers the caller and opens the home halves of its descriptors.
func (h *Homes) prepare(ctx context.Context, c *caller) (*placed, error) {
	// The process and its descriptors are looked at side by side: both take
	// many calls, and the caller waits.
	looked := make(chan *described, 1)
	go func() { looked <- h.describe(ctx, c) }()
	spec, err := h.gather(c)
	look := <-looked
	if look.pidfd >= 0 {
		defer unix.Close(look.pidfd)
	}
	if err == nil {
		err = look.err
	}
	if err != nil {
		return nil, err
	}
	if !c.n.Valid() {
		return nil, unix.ESRCH
	}
	peer, err := h.cfg.Peer(c.dest.Node)
	if err != nil {
		return nil, err
	}
	h.beginHold(c)
	p := h.newPlaced(&placedRecord{
		Place: carry.Placement{
			ID: h.nextID.Add(1), Pid: spec.Pid, Pgid: spec.Pgid, Sid: spec.Sid,
			Home: h.cfg.Node, Guest: c.dest.Node,
		},
		Host: c.task.Tgid, Start: c.task.Start, Path: spec.Path, Argv: spec.Argv, Uid: c.task.Uid[0],
		Since: time.Now(), Why: c.dest.Why, Parent: c.task.Ppid, Descs: look.descs, TTY: look.term,
		Pending: spec.SigPnd,
	}, peer)
	p.req = &startReq{Place: p.place, Spec: *spec, Descs: look.descs, TTY: look.term}
	h.mu.Lock()
	h.placed[p.place.Pid] = p
	h.mu.Unlock()
	if look.term != nil {
		end, err := h.cfg.Terminal.Homes.Attach(ctx, p.place, look.term, nil)
		if err != nil {
			h.abandon(p)
			return nil, fmt.Errorf("the controlling terminal: %w", err)
		}
		p.homes = append(p.homes, end)
	}
	for _, d := range look.descs {
		k, err := h.cfg.Carry.Kind(d.Kind)
		if err != nil {
			h.abandon(p)
			return nil, err
		}
		f, err := sys.PidfdGetfd(look.pidfd, d.Nums[0])
		if err != nil {
			h.abandon(p)
			return nil, fmt.Errorf("fd %d: %w", d.Nums[0], err)
		}
		c, err := k.Serve(ctx, p.place, d, f)
		if err != nil {
			f.Close()
			h.abandon(p)
			return nil, fmt.Errorf("fd %d (%s): %w", d.Nums[0], d.Kind, err)
		}
		p.homes = append(p.homes, c)
	}
	// Known before the guest is asked, so that a successor finds the body; and
	// only when all halves stand, so that it can resume them.
	if err := h.records.save(p.key(), &p.placedRecord); err != nil {
		h.abandon(p)
		return nil, err
	}
	return p, nil
}

// convert turns the caller into the deputy of its body.
func (h *Homes) convert(ctx context.Context, c *caller, p *placed) error {
	name := filepath.Base(p.Path)
	prog := &deputy.Program{}
	prog.Do(unix.SYS_PRCTL, unix.PR_SET_NAME, prog.String(name))
	hello, cancel, err := h.cfg.Registry.ExpectConverted(p.Host, deputy.First{Prog: prog})
	if err != nil {
		h.release(c, 0)
		return err
	}
	defer cancel()
	var answered bool
	err = h.tracer.Do(func() (err error) {
		answered, err = ptrace.ToStub(ptrace.Redirect{
			Notif: c.n, Stub: h.stub, Argv: c.argvAddr, Nul: c.nul, Cookie: h.cfg.Cookie,
			Held: c.held,
		})
		return err
	})
	if !answered {
		c.n.Continue()
	}
	if err != nil {
		return err
	}
	stub, err := greeted(p.Host, hello)
	if err != nil {
		return err
	}
	h.run(p, stub)
	return nil
}

// helloSoon is when a converted caller's hello is late: it may never come.
const helloSoon = 50 * time.Millisecond

// greeted waits for the hello of a caller that was converted. Its end is looked
// for only when the hello is late: the watch would stand as long as the deputy.
func greeted(host int, hello <-chan *deputy.Stub) (*deputy.Stub, error) {
	killed := errors.New("the caller was killed meanwhile")
	fd, err := sys.PidfdOpen(host)
	if err != nil {
		select {
		case stub := <-hello:
			return stub, nil
		default:
			return nil, killed
		}
	}
	late := time.NewTimer(helloSoon)
	defer late.Stop()
	select {
	case stub := <-hello:
		unix.Close(fd)
		return stub, nil
	case <-late.C:
	}
	gone := make(chan struct{})
	go func() {
		sys.PidfdWait(fd)
		unix.Close(fd)
		close(gone)
	}()
	select {
	case stub := <-hello:
		return stub, nil
	case <-gone:
	}
	select {
	case stub := <-hello:
		return stub, nil
	default:
		return nil, killed
	}
}

// run starts a deputy's life: the body runs, the deputy exists.
func (h *Homes) run(p *placed, stub *deputy.Stub) {
	p.stub = stub
	for _, c := range p.homes {
		c.Commit()
	}
	h.whys.set(p.place.Pid, fmt.Sprintf("placed on %s: %s", p.place.Guest, p.Why))
	h.wg.Add(2)
	go func() {
		defer h.wg.Done()
		h.forward(p)
	}()
	go func() {
		defer h.wg.Done()
		<-p.stub.Gone()
		h.gone(p)
	}()
	// The stub stands still until its signal is done, so there is never more
	// than one.
	p.stub.OnSignal(func(g *deputy.Signal) { p.signals <- g })
	close(p.ready)
}

// forward sends the deputy's signals to the body, in order.
func (h *Homes) forward(p *placed) {
	for {
		select {
		case g := <-p.signals:
			h.pass(p, g)
			g.Done()
		case <-p.done:
			return
		}
	}
}

func (h *Homes) pass(p *placed, g *deputy.Signal) {
	p.order.Lock()
	defer p.order.Unlock()
	if bit := uint64(1) << (g.Info.Signo() - 1); p.Pending&bit != 0 {
		p.Pending &^= bit
		return
	}
	if g.Info.Signo() == unix.SIGCONT && !p.goesOn(&g.Info) || h.terminal(p, &g.Info) {
		return
	}
	_, err := unum.Call[struct{}](p.ctx, p.peer, "rexec.signal",
		&signalReq{ID: p.place.ID, Pid: p.place.Pid, Info: g.Info, Once: g.ID})
	if err != nil && !errors.Is(err, unum.ErrNoProcess) && p.ctx.Err() == nil {
		h.log.Warn("forward a signal", "pid", p.place.Pid, "sig", g.Info.Signo(), "err", err)
	}
}

// siKernel is the si_code of what the kernel itself sends, such as ^C.
const siKernel = 0x80

// terminal lets the carrier of terminals deliver what home's terminal sent: at
// the guest it goes once to the whole foreground group.
func (h *Homes) terminal(p *placed, si *sys.Siginfo) bool {
	if p.TTY == nil {
		return false
	}
	ctx := context.Background()
	if si.Signo() == unix.SIGCONT {
		if err := h.cfg.Terminal.Homes.Sync(ctx, p.place); err != nil {
			h.log.Warn("bring a terminal up to date", "pid", p.place.Pid, "err", err)
		}
		return false
	}
	return si.Code() == siKernel && si.Pid() == 0 && h.cfg.Terminal.Homes.Signal(ctx, p.place, si.Signo())
}

// signalBody sends a plain signal to the body, outside of the deputy's order.
func (h *Homes) signalBody(p *placed, sig unix.Signal) {
	_, err := unum.Call[struct{}](context.Background(), p.peer, "rexec.signal", &signalReq{
		ID: p.place.ID, Pid: p.place.Pid, Info: *sys.MakeSiginfo(sig, 0, 0, 0),
	})
	if err != nil && !errors.Is(err, unum.ErrNoProcess) {
		h.log.Warn("signal a body", "pid", p.place.Pid, "sig", sig, "err", err)
	}
}

// event is what the guest tells of a body (rexec.event). It returns when the
// deputy has been told, so that the guest keeps the order.
func (h *Homes) event(ctx context.Context, from unum.NodeID, e *eventReq) error {
	h.mu.Lock()
	p := h.placed[e.Pid]
	h.mu.Unlock()
	if p == nil || p.place.ID != e.ID || p.place.Guest != from {
		return unum.ErrNoProcess
	}
	// A body may have ended before its caller has become the deputy.
	select {
	case <-p.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	if p.stub == nil {
		return unum.ErrNoProcess
	}
	switch e.Kind {
	case exited, killed:
		h.groups.wait(ctx, e.After)
		return h.end(ctx, p, e)
	case stopped:
		return h.stop(ctx, p, e)
	case continued:
		return h.continued(ctx, p)
	}
	return fmt.Errorf("unknown event %d", e.Kind)
}

func (h *Homes) drain(ctx context.Context, p *placed) {
	var wg sync.WaitGroup
	for _, c := range p.homes {
		wg.Go(func() {
			if err := c.Drain(ctx); err != nil {
				h.log.Warn("drain a descriptor", "pid", p.place.Pid, "err", err)
			}
		})
	}
	wg.Wait()
}

// end makes the deputy end as its body did, when all that the body wrote has
// arrived and what it did not read is back.
func (h *Homes) end(ctx context.Context, p *placed, e *eventReq) error {
	p.mu.Lock()
	again := p.ended != nil
	p.ended = e
	p.mu.Unlock()
	if again {
		return p.await(ctx)
	}
	h.drain(ctx, p)
	for _, c := range p.homes {
		if err := c.Close(); err != nil {
			h.log.Warn("close a descriptor", "pid", p.place.Pid, "err", err)
		}
	}
	h.usage(p, e)
	h.resume(p)
	if e.Kind == killed && e.Status == int(unix.SIGKILL) {
		p.stub.Kill() // also if it stands stopped
		return p.await(ctx)
	}
	err := p.stub.Start(nil, exitProgram(*e, h.dumps, h.cfg.Cookie), func(*deputy.Result, error) {})
	if err != nil && !errors.Is(err, deputy.ErrGone) {
		return err
	}
	return p.await(ctx)
}

// await waits for the deputy's end: until then a successor of this daemon must
// hear of the body's again.
func (p *placed) await(ctx context.Context) error {
	select {
	case <-p.stub.Gone():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// usage tells the scheduler, and the parent's account.
func (h *Homes) usage(p *placed, e *eventReq) {
	h.cfg.Finished(p.place.Pid, sched.Outcome{
		Wall:   time.Since(p.Since),
		CPU:    time.Duration(e.Usage.Utime+e.Usage.Stime) * time.Microsecond,
		MaxRSS: uint64(e.Usage.MaxRSS) << 10,
	})
	if h.cfg.Account != nil {
		h.cfg.Account(p.Parent, p.Host, e.Usage)
	}
}

// gone forgets a deputy. If its body has not ended, it was killed here, and the
// body is killed there.
func (h *Homes) gone(p *placed) {
	p.mu.Lock()
	ended := p.ended
	p.mu.Unlock()
	defer close(p.over)
	close(p.done)
	p.cancel()
	if ended == nil {
		h.signalBody(p, unix.SIGKILL)
		for _, c := range p.homes {
			c.Close()
		}
		h.cfg.Failed(p.place.Pid)
	}
	h.forget(p)
}
