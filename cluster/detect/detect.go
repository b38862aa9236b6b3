// Package detect decides which nodes are suspected and which are lost. It is
// pure: time is an argument (any monotonic clock of the observer), and what is
// to be done is a result. The caller sends heartbeats, probes, and declares.
//
//	trusted ──silent for Period×Misses──▶ suspect ──two observers agree and its host is silent too──▶ lost
//	   ▲                                     │     └──its lease ran out────────────────────────────────▶ lost
//	   └──────────heartbeat──────────────────┘
//
// A daemon that crashed, hangs or starves is not a lost node: its kernel still
// answers. A reset or refused connection, an end of input, or a connection
// that is accepted, is such an answer (Answered); while one is younger than a
// detection period, agreement does not count and only the lease decides.
//
// A node is probed from the time on when it has been silent for two thirds of that:
// a heartbeat that was lost in a short cut comes again late, a probe does not.
//
// An observer that was itself late knows nothing of others: when a tick comes
// more than one period late, the lost time counts for nobody's silence.
//
// While nobody is late every second tick is left out (Next): most of what
// an idle node costs is its heartbeats.
package detect

import (
	"cmp"
	"slices"
	"time"

	"unum"
)

// Config has the detector's times. Zero values are the defaults.
type Config struct {
	Period time.Duration // between heartbeats, and between ticks, at least; 50 ms
	Misses int           // silent periods until suspicion; 6
}

// Member is a node of the membership.
type Member struct {
	ID    unum.NodeID
	Epoch unum.Epoch
	Lease bool // it runs
}

// Suspicion is what one observer thinks of one life of a node; heartbeats
// carry them.
type Suspicion struct {
	ID    unum.NodeID `msgpack:"n"`
	Epoch unum.Epoch  `msgpack:"e"`
}

// Kind says what an Event is about.
type Kind string

const (
	Suspect   Kind = "suspect"   // it has become silent
	Trust     Kind = "trust"     // it speaks again
	Probe     Kind = "probe"     // find out whether its host answers; call Answered if so
	Lost      Kind = "lost"      // declare it down; repeated each period until the membership shows it
	Restarted Kind = "restarted" // its daemon is a new one, the node is not
)

// Event is a result.
type Event struct {
	Kind  Kind
	ID    unum.NodeID
	Epoch unum.Epoch
	Why   string // of Lost
}

// Detector observes the other nodes of a cluster for one of them. It is not
// safe for concurrent use.
type Detector struct {
	self    unum.NodeID
	cfg     Config
	ticked  bool
	last    time.Duration // the last tick
	next    time.Duration // from there to the next one
	members map[unum.NodeID]*member
}

type member struct {
	Member
	heard    time.Duration // last heartbeat, or when observing began
	answered time.Duration // last sign of its host; no sign yet if before heard
	suspect  bool
	since    time.Duration // when suspicion began
	probed   time.Duration // when the first probe of this silence was asked for; before heard: not yet
	inc      unum.Incarnation
	thinks   []Suspicion // what it said last
}

// New makes a detector that knows nobody.
func New(self unum.NodeID, c Config) *Detector {
	if c.Period == 0 {
		c.Period = 50 * time.Millisecond
	}
	if c.Misses == 0 {
		c.Misses = 6
	}
	return &Detector{self: self, cfg: c, next: c.Period, members: map[unum.NodeID]*member{}}
}

// silence is how long a node may be silent.
func (d *Detector) silence() time.Duration { return d.cfg.Period * time.Duration(d.cfg.Misses) }

// Members tells the membership: the nodes that are neither down nor left. A
// node that is new, or new in its epoch, has a detection period to speak.
func (d *Detector) Members(now time.Duration, list []Member) {
	seen := map[unum.NodeID]bool{d.self: true}
	for _, m := range list {
		if seen[m.ID] {
			continue
		}
		seen[m.ID] = true
		old := d.members[m.ID]
		if old == nil || old.Epoch != m.Epoch {
			d.members[m.ID] = &member{Member: m, heard: now, answered: now - d.silence()}
			continue
		}
		old.Member = m
	}
	for id := range d.members {
		if !seen[id] {
			delete(d.members, id)
		}
	}
}

// Heard takes a heartbeat. Those of another epoch are ignored.
func (d *Detector) Heard(now time.Duration, from unum.NodeID, epoch unum.Epoch, suspects []Suspicion) []Event {
	m := d.members[from]
	if m == nil || m.Epoch != epoch {
		return nil
	}
	m.heard, m.thinks = now, suspects
	if !m.suspect {
		return nil
	}
	m.suspect = false
	return []Event{{Kind: Trust, ID: from, Epoch: m.Epoch}}
}

// Connected says that a connection to the node's daemon was made.
func (d *Detector) Connected(now time.Duration, id unum.NodeID, inc unum.Incarnation) []Event {
	m := d.members[id]
	if m == nil {
		return nil
	}
	d.Answered(now, id)
	old := m.inc
	m.inc = inc
	if old == 0 || old == inc {
		return nil
	}
	m.thinks = nil
	return []Event{{Kind: Restarted, ID: id, Epoch: m.Epoch}}
}

// Answered says that the node's kernel lives, whatever its daemon does.
func (d *Detector) Answered(now time.Duration, id unum.NodeID) {
	if m := d.members[id]; m != nil {
		m.answered = max(m.answered, now)
	}
}

// Next is the time from one tick to the one after it.
func (d *Detector) Next() time.Duration { return d.next }

// Tick is called as often as Next says, or more often. It returns the events in
// the order of nodes.
func (d *Detector) Tick(now time.Duration) []Event {
	gap, due := now-d.last, d.next
	if !d.ticked {
		gap = 0
	}
	d.ticked, d.last = true, now
	if gap > due+d.cfg.Period {
		late := gap - d.cfg.Period
		for _, m := range d.members {
			m.heard = min(now, m.heard+late)
			m.answered = min(now, m.answered+late)
			m.since = min(now, m.since+late)
			m.probed = min(now, m.probed+late)
		}
	}
	d.next = 2 * d.cfg.Period
	for _, m := range d.members {
		if now-m.heard >= d.silence()*2/3 && m.probed <= m.heard {
			m.probed = now
		}
	}
	var out []Event
	for _, m := range d.sorted() {
		if !m.suspect && now-m.heard >= d.silence() {
			m.suspect, m.since = true, now
			out = append(out, Event{Kind: Suspect, ID: m.ID, Epoch: m.Epoch})
		}
	}
	for _, m := range d.sorted() {
		if !m.suspect {
			if now-m.heard >= d.silence()*2/3 {
				// An answer in good time keeps a link that is cut for a moment, again
				// and again, from looking like a host that does not answer at all.
				d.next = d.cfg.Period
				out = append(out, Event{Kind: Probe, ID: m.ID, Epoch: m.Epoch})
			}
			continue
		}
		d.next = d.cfg.Period
		switch {
		case !m.Lease:
			out = append(out, Event{Lost, m.ID, m.Epoch, "its lease ran out"})
		case now-m.answered < d.silence():
			out = append(out, Event{Kind: Probe, ID: m.ID, Epoch: m.Epoch})
		default:
			out = append(out, Event{Kind: Probe, ID: m.ID, Epoch: m.Epoch})
			// Three periods after the suspicion: until then the node, if it is cut off,
			// has seen that it is (Isolated), and has halted what runs there.
			if by := d.witness(m); by != "" && now-m.since >= 3*d.cfg.Period {
				out = append(out, Event{Lost, m.ID, m.Epoch, "silent to " + string(min(d.self, by)) + " and " + string(max(d.self, by))})
			}
		}
	}
	return out
}

// witness returns another observer, itself trusted, that suspects the same
// life of m; "" if there is none.
func (d *Detector) witness(m *member) unum.NodeID {
	for _, w := range d.sorted() {
		if w != m && !w.suspect && slices.Contains(w.thinks, Suspicion{m.ID, m.Epoch}) {
			return w.ID
		}
	}
	return ""
}

// Suspects is what this observer's heartbeats are to say. A node whose host
// answers, or had no time yet to answer the first probe, is not among them.
func (d *Detector) Suspects() []Suspicion {
	var out []Suspicion
	for _, m := range d.sorted() {
		if m.suspect && d.last-m.answered >= d.silence() && m.probed > m.heard && d.last-m.probed >= d.cfg.Period {
			out = append(out, Suspicion{m.ID, m.Epoch})
		}
	}
	return out
}

// Isolated says whether this node seems to be the one that is cut off: there
// are others, all are silent, and no host of theirs answers.
func (d *Detector) Isolated() bool {
	return len(d.members) > 0 && len(d.Suspects()) == len(d.members)
}

// Suspected says whether a node is suspected here.
func (d *Detector) Suspected(id unum.NodeID) bool {
	m := d.members[id]
	return m != nil && m.suspect
}

func (d *Detector) sorted() []*member {
	out := make([]*member, 0, len(d.members))
	for _, m := range d.members {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b *member) int { return cmp.Compare(a.ID, b.ID) })
	return out
}
