package rexec

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"unum"
	"unum/carry"
	"unum/carry/tty"
	"unum/deputy"
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
	orphans  map[unum.Pid]*body       // born here, with a deputy on another node (nursery.go)
	starting map[uint64]chan struct{} // births under way, by operation id; closed when decided
	seq      uint64                   // of the last event
	ledger   *ledger
	groups   *groups
	wg       sync.WaitGroup

	nurseries nurseries
	nextID    func() uint64                 // of placements
	reaper    func(host int, on bool) error // notes a body that is a subreaper
	handedOn  func(context.Context, unum.NodeID)

	recBodies   records[bodyRecord]
	recSessions records[sessionRecord]
	recEvents   records[eventReq]
}

func newGuests(cfg Config, mk *maker, gs *groups) *Guests {
	return &Guests{
		cfg: cfg, mk: mk, log: cfg.Log, groups: gs,
		sessions: map[unum.Pid]*session{},
		bodies:   map[unum.Pid]*body{}, untold: map[uint64]*body{}, starting: map[uint64]chan struct{}{},
		orphans: map[unum.Pid]*body{}, nurseries: nurseries{all: map[int]*nursery{}},
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

// bodyRecord is what a successor of the daemon must know of a body.
type bodyRecord struct {
	Place   carry.Placement
	Sid     unum.Pid // of its session's record; rootSession if it leads its own
	Path    string
	Started time.Time
	Descs   []*carry.Desc
	TTY     *tty.Desc

	Nursery  int           // host PID of its parent, if that is one
	Reapers  []unum.NodeID // nodes with a subreaper above it
	Orphan   bool          // it was born here
	Uid, Gid uint32        // of an orphan
}

// body is one placed process here.
type body struct {
	bodyRecord
	place   carry.Placement
	sess    *session
	nursery *nursery      // its parent; nil if that is the session's agent
	decide  chan struct{} // of an orphan: ready, to be closed
	parent  *deputy.Stub  // the agent that forked it
	stub    *deputy.Stub  // its handle: end and pidfd
	guests  []carry.Guest
	once    [16]uint64 // the last signals that were delivered, by their id
	at      int
	after   uint64 // the last signal to its group

	ready <-chan struct{} // closed when its birth is decided; stub is nil if it failed
	last  <-chan struct{} // closed when the event before has been told; guarded by Guests.mu
	// born: what its agent tells of its number from now on is about it, and not
	// about one before it that was undone; guarded by Guests.mu
	born bool
	// doubted: found in the records and nowhere else, by a new daemon
	doubted bool
	over    bool // it has ended; guarded by Guests.mu

	news uint64 // Seq of the last event; guarded by Guests.mu
}

func (b *body) key() string { return b.place.Pid.String() }

// known returns the body of a placement, also if it has ended and home does
// not know.
func (g *Guests) known(pl carry.Placement) *body {
	g.mu.Lock()
	defer g.mu.Unlock()
	if b := g.find(pl.Pid); b != nil && b.place.ID == pl.ID {
		return b
	}
	return g.untold[pl.ID]
}
