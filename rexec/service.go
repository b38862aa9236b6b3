package rexec

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
	"unum/deputy"
)

// Service is placement on one node: both halves, and the processes that the
// control socket starts.
type Service struct {
	*Homes
	Guests *Guests
	Runs   *Runs
	cfg    Config
}

// New makes it. stub is the executable of the deputy, open; WorldRoot and Root
// of cfg belong to the caller.
func New(cfg Config, stub *os.File) (*Service, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	mk, err := newMaker(cfg.Registry, cfg.Cookie, cfg.Root)
	if err != nil {
		return nil, err
	}
	mk.mount = cfg.Mount
	gs := newGroups()
	h, err := newHomes(cfg, stub, gs)
	if err != nil {
		return nil, err
	}
	root := "/proc/" + strconv.Itoa(cfg.Root.HostPid)
	h.depth = mk.caps.Depth
	h.spaces = map[string]string{}
	for _, ns := range []string{"mnt", "user", "net", "ipc", "uts", "cgroup", "time"} {
		if h.spaces[ns], err = os.Readlink(root + "/ns/" + ns); err != nil {
			return nil, err
		}
	}
	h.cfg.Filters = mk.caps.Filters
	s := &Service{Homes: h, Guests: newGuests(cfg, mk, gs), cfg: cfg}
	h.nursed = &s.Guests.nurseries
	s.Guests.nextID = func() uint64 { return h.nextID.Add(1) }
	s.Guests.reaper = h.Subreaper
	s.Guests.handedOn = h.handedOnTo
	s.Runs = newRuns(cfg, mk)
	return s, os.MkdirAll(h.dumps, 0o1777)
}

// Register puts the service's calls on the node's endpoint.
func (s *Service) Register(on func(method string, h unum.Handler)) {
	on("rexec.start", unum.Handle(func(ctx context.Context, _ unum.NodeID, r *startReq) (*startRes, error) {
		return s.Guests.start(ctx, r), nil
	}))
	on("rexec.signal", unum.Handle(func(_ context.Context, _ unum.NodeID, r *signalReq) (*struct{}, error) {
		return &struct{}{}, s.Guests.signal(r)
	}))
	on("rexec.adopt", unum.Handle(func(ctx context.Context, from unum.NodeID, r *adoptReq) (*struct{}, error) {
		return &struct{}{}, s.Homes.adopt(ctx, from, r)
	}))
	on("rexec.missing", unum.Handle(func(_ context.Context, from unum.NodeID, r *missingReq) (*missingReq, error) {
		return s.Guests.missing(from, r), nil
	}))
	on("rexec.halted", unum.Handle(func(_ context.Context, _ unum.NodeID, r *haltedReq) (*haltedRes, error) {
		return s.Guests.halted(r), nil
	}))
	on("rexec.event", unum.Handle(func(ctx context.Context, from unum.NodeID, r *eventReq) (*struct{}, error) {
		return &struct{}{}, s.Homes.event(ctx, from, r)
	}))
}

// Close waits for what is under way. Deputies and bodies live on.
func (s *Service) Close() {
	s.Homes.tracer.Close()
}

// Body is a placed process as the node lists it.
type Body struct {
	Pid         unum.Pid
	HostPid     int
	Home, Guest unum.NodeID
	Path        string
	Argv        []string
	Uid         uint32
	Since       time.Time
	Why         string
}

// Placed lists the processes of this node that run elsewhere.
func (h *Homes) Placed() []Body {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]Body, 0, len(h.placed))
	for _, p := range h.placed {
		out = append(out, Body{Pid: p.place.Pid, HostPid: p.Host, Home: p.place.Home, Guest: p.place.Guest,
			Path: p.Path, Argv: p.Argv, Uid: p.Uid, Since: p.Since, Why: p.Why})
	}
	return out
}

// Where returns the node on which a process of this node's range runs.
func (h *Homes) Where(pid unum.Pid) (unum.NodeID, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.placed[pid]
	if p == nil {
		return "", false
	}
	return p.place.Guest, true
}

// Why says why a process runs where it does, if that is remembered.
// host is its PID in the daemon's namespace, 0 if it is not on this node.
func (h *Homes) Why(pid unum.Pid, host int) string { return h.whys.get(pid, host) }

// Bodies lists the processes of other nodes that run here.
func (g *Guests) Bodies() []Body {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]Body, 0, len(g.bodies))
	for _, b := range g.bodies {
		host := 0
		select {
		case <-b.ready:
			if b.stub != nil {
				host = b.stub.HostPid
			}
		default:
		}
		out = append(out, Body{Pid: b.place.Pid, HostPid: host, Home: b.place.Home, Guest: b.place.Guest,
			Path: b.Path, Since: b.Started})
	}
	return out
}

// Home returns the home of a process that runs here for another node.
func (g *Guests) Home(pid unum.Pid) (unum.NodeID, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	b := g.bodies[pid]
	if b == nil {
		return "", false
	}
	return b.place.Home, true
}

// CloseInDeputy makes the deputy of a placement close descriptors that its
// body has no more (carry.Env.Release).
func (h *Homes) CloseInDeputy(ctx context.Context, pl carry.Placement, nums []int) error {
	h.mu.Lock()
	p := h.placed[pl.Pid]
	h.mu.Unlock()
	if p == nil || p.place.ID != pl.ID {
		return nil
	}
	select {
	case <-p.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	if p.stub == nil {
		return nil
	}
	p.mu.Lock()
	prog := &deputy.Program{Tag: p.seen<<1 | 1}
	p.mu.Unlock()
	for _, n := range nums {
		prog.Do(unix.SYS_CLOSE, uint64(n))
	}
	if _, err := p.stub.Run(ctx, prog); err != nil && !errors.Is(err, deputy.ErrGone) {
		return err
	}
	return nil
}

// NewAgent makes a stub of the world that is nobody's: the keeper of
// descriptors, say.
func NewAgent(ctx context.Context, cfg Config) (*deputy.Stub, error) {
	mk, err := newMaker(cfg.Registry, cfg.Cookie, cfg.Root)
	if err != nil {
		return nil, err
	}
	return mk.agent(ctx, cfg.Root, 0, false, true, nil)
}

// Counts says how many placements, bodies, sessions with an agent and
// processes of the control socket there are: what a leak would make grow.
func (s *Service) Counts() (deputies, bodies, sessions, runs int) {
	s.Homes.mu.Lock()
	deputies = len(s.Homes.placed)
	s.Homes.mu.Unlock()
	s.Guests.mu.Lock()
	bodies, sessions = len(s.Guests.bodies)+len(s.Guests.orphans)+len(s.Guests.untold), len(s.Guests.sessions)
	s.Guests.mu.Unlock()
	s.Runs.mu.Lock()
	runs = len(s.Runs.runs)
	s.Runs.mu.Unlock()
	return
}
