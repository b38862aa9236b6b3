package sched

import (
	"errors"
	"fmt"
	"time"

	"unum"
)

// Values of UNUM_NODE besides the name of a node.
const (
	HintAuto      = "auto"      // by load; the same as none
	HintHere      = "here"      // the caller's node
	HintHome      = "home"      // the node where the process was born
	HintElsewhere = "elsewhere" // always another node than the caller's
)

// ErrNotTaking says that a node which exists takes no new process.
var ErrNotTaking = errors.New("takes no new processes")

// View is the cluster as the deciding node sees it. It is not kept.
type View struct {
	Self  unum.NodeID
	Nodes []unum.NodeInfo // with the Load of each node's last heartbeat
}

// Request is one exec that waits for its place.
type Request struct {
	Pid unum.Pid
	// Parent is the caller's parent, 0 if that is not known.
	Parent unum.Pid
	Path   string   // of the file that would be executed, resolved
	Argv   []string // any bytes
	Hint   string   // value of UNUM_NODE
	// Caller is the node where the process runs now, Home where it was born
	// and where its descriptors are.
	Caller, Home unum.NodeID
	// Guest says that the caller is, or descends from, a process that was
	// placed on its node (its session belongs to another node's range).
	Guest bool
	// Avoid are nodes that cannot take the process: where its session lives,
	// whose leader is no agent there and cannot make bodies, and where its own
	// number is taken by its deputy.
	Avoid []unum.NodeID
	// Interactive says that standard input is a terminal.
	Interactive bool
}

// Decision is where to run. Node is never empty: when Err is set it is where
// the process may run if the caller prefers that to a failure.
type Decision struct {
	Node unum.NodeID
	Why  string // one line for `unum why`
	// Observe asks for a Finished (or Failed) also if the process stays where
	// it is: too little is known of the command, or it is long and counts.
	Observe bool
	Err     error // an explicit wish that cannot be met
}

// Outcome is what a process used from its exec to its end. What is not known
// is 0.
type Outcome struct {
	Wall   time.Duration
	CPU    time.Duration // user and system, with its reaped children
	MaxRSS uint64        // bytes
}

// Config sets the scheduler's constants; the zero value takes the defaults.
type Config struct {
	// Tau is the time constant of the smoothing of Load.Running: 1 s.
	Tau time.Duration
	// Hop is what a placement costs, in processor time of both nodes: 3 ms.
	Hop time.Duration
	// Short commands never leave a node by themselves: 10 ms.
	Short time.Duration
	// Unknown is what a command is taken to need before it was seen: 100 ms.
	Unknown time.Duration
	// MinFree is the memory that a node must have left, in bytes: 64 MiB.
	MinFree uint64
	// Commands bounds the table of histories and of what stays home: 2,048.
	Commands int
}

// Scheduler remembers what it placed and how long commands took. It holds no
// lock: calls must not overlap.
type Scheduler struct {
	cfg   Config
	books map[unum.NodeID]*book
	live  map[unum.Pid]job
	hist  *table[history]
	kept  *table[string]
	rng   uint64
	cands []cand
}

// job is a process whose end will be told.
type job struct {
	node unum.NodeID
	key  string
	at   int64
	slow float64 // how crowded the node was, at least 1
	// in is the job that started this one and waits for it: the two are one
	// task. waits is the one that it waits for. 0 if none.
	in, waits unum.Pid
}

// New returns a scheduler that knows nothing yet.
func New(cfg Config) *Scheduler {
	def(&cfg.Tau, time.Second)
	def(&cfg.Hop, 3*time.Millisecond)
	def(&cfg.Short, 10*time.Millisecond)
	def(&cfg.Unknown, 100*time.Millisecond)
	def(&cfg.MinFree, 64<<20)
	def(&cfg.Commands, 2048)
	return &Scheduler{
		cfg:   cfg,
		books: map[unum.NodeID]*book{},
		live:  map[unum.Pid]job{},
		hist:  newTable[history](cfg.Commands),
		kept:  newTable[string](cfg.Commands),
		rng:   0x9e3779b97f4a7c15,
	}
}

func def[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Place decides where the process of r runs. The decision counts against the
// chosen node at once; Finished takes it off again.
func (s *Scheduler) Place(now int64, v View, r Request) Decision {
	key := Command(r.Path, r.Argv)
	if reason, ok := HomeOnly(r.Path, r.Argv...); ok {
		return Decision{Node: r.Home, Why: "stays home: " + reason}
	}
	if reason, ok := s.kept.get(key); ok {
		return Decision{Node: r.Home, Why: "stays home: " + *reason}
	}
	var d Decision
	switch r.Hint {
	case "", HintAuto:
		return s.auto(now, v, r, key)
	case HintHere:
		d = Decision{Node: r.Caller, Why: "UNUM_NODE=here"}
	case HintHome:
		d = Decision{Node: r.Home, Why: "UNUM_NODE=home"}
	case HintElsewhere:
		d = s.elsewhere(now, v, r, key)
	default:
		d = s.byName(now, v, r, key)
	}
	if d.Err == nil && d.Node != r.Caller {
		s.begin(now, r.Pid, d.Node, key, 1)
	}
	return d
}

// byName obeys UNUM_NODE=n2.
func (s *Scheduler) byName(now int64, v View, r Request, key string) Decision {
	want := unum.NodeID(r.Hint)
	for i := range v.Nodes {
		n := &v.Nodes[i]
		if n.ID != want {
			continue
		}
		if n.ID == r.Caller {
			return Decision{Node: want, Why: "UNUM_NODE=" + r.Hint}
		}
		if err := s.refuses(n, s.need(key)); err != nil {
			return Decision{
				Node: r.Home, Why: "UNUM_NODE=" + r.Hint + ", but " + err.Error(),
				Err: &unum.Error{Op: "place", Pid: r.Pid, Node: want, Err: err},
			}
		}
		s.see(now, n)
		return Decision{Node: want, Why: "UNUM_NODE=" + r.Hint}
	}
	return Decision{
		Node: r.Home, Why: "UNUM_NODE=" + r.Hint + ", but there is no such node",
		Err: &unum.Error{Op: "place", Pid: r.Pid, Node: want, Err: unum.ErrNoNode},
	}
}

// elsewhere obeys UNUM_NODE=elsewhere: the least crowded of the others.
func (s *Scheduler) elsewhere(now int64, v View, r Request, key string) Decision {
	cs := s.others(now, v, r, s.need(key))
	if len(cs) == 0 {
		return Decision{Node: r.Caller, Why: "UNUM_NODE=elsewhere, but no other node takes processes"}
	}
	return Decision{Node: s.least(cs).info.ID, Why: "UNUM_NODE=elsewhere"}
}

// refuses returns why a node takes nothing, or nil. need is in bytes.
func (s *Scheduler) refuses(n *unum.NodeInfo, need uint64) error {
	if n.State != unum.Up {
		if n.State == unum.Down {
			return unum.ErrNodeLost
		}
		return fmt.Errorf("it is %s and %w", n.State, ErrNotTaking)
	}
	if n.Load.MemTotal != 0 && n.Load.MemFree < s.cfg.MinFree+need {
		return fmt.Errorf("it has %d MiB of memory left and %w", n.Load.MemFree>>20, ErrNotTaking)
	}
	return nil
}

// Started confirms that the process runs on node, which may differ from what
// Place said (a descriptor that could not be carried kept it at home).
func (s *Scheduler) Started(now int64, pid unum.Pid, node unum.NodeID) {
	j, ok := s.live[pid]
	if !ok || j.node == node {
		return
	}
	s.book(j.node).add(now, -1)
	s.book(node).add(now, +1)
	j.node = node
	s.live[pid] = j
}

// Finished tells the end of a process that Place placed or asked to observe,
// and learns from it. A process that Place does not know is ignored.
func (s *Scheduler) Finished(now int64, pid unum.Pid, o Outcome) {
	j, ok := s.live[pid]
	if !ok {
		return
	}
	s.end(now, pid, j)
	if o.CPU == 0 {
		// On a crowded or capped node the clock runs faster than the process.
		if o.Wall == 0 {
			o.Wall = time.Duration(now - j.at)
		}
		o.Wall = time.Duration(float64(o.Wall) / j.slow)
	}
	s.Learn(j.key, o)
}

// Failed takes back a placement that never ran; nothing is learned.
func (s *Scheduler) Failed(now int64, pid unum.Pid) {
	if j, ok := s.live[pid]; ok {
		s.end(now, pid, j)
	}
}

// Lost forgets what was placed on a node that is down.
func (s *Scheduler) Lost(node unum.NodeID) {
	delete(s.books, node)
	for pid, j := range s.live {
		if j.node == node {
			delete(s.live, pid)
		}
	}
}

// Forbid keeps a command at home from now on, whatever UNUM_NODE says. command
// is what Command returns for it; reason completes "stays home: ".
func (s *Scheduler) Forbid(command, reason string) { s.kept.put(command, reason) }

// Kept returns what was forbidden, and why.
func (s *Scheduler) Kept() map[string]string { return s.kept.all() }

// begin counts a process against a node. An exec by a process that is counted
// already replaces it: it is one task.
func (s *Scheduler) begin(now int64, pid unum.Pid, node unum.NodeID, key string, slow float64) {
	if j, ok := s.live[pid]; ok {
		s.end(now, pid, j)
	}
	s.live[pid] = job{node: node, key: key, at: now, slow: slow}
	s.book(node).add(now, +1)
}

// beginIn is begin for the one child that a job on the same node waits for:
// they are one task. Preconditions: s.waiter(parent, node).
func (s *Scheduler) beginIn(now int64, parent, pid unum.Pid, key string, slow float64) {
	p := s.live[parent]
	p.waits = pid
	s.live[parent] = p
	s.live[pid] = job{node: p.node, key: key, at: now, slow: slow, in: parent}
}

// waiter says whether a process is a job on that node which waits for nobody
// yet: its first child takes its place, the next is a task more.
func (s *Scheduler) waiter(pid unum.Pid, node unum.NodeID) bool {
	j, ok := s.live[pid]
	return ok && j.node == node && j.waits == 0
}

func (s *Scheduler) end(now int64, pid unum.Pid, j job) {
	delete(s.live, pid)
	if p, ok := s.live[j.in]; ok && p.waits == pid {
		p.waits = 0 // goes on itself
		s.live[j.in] = p
	} else {
		s.book(j.node).add(now, -1)
	}
	// Whoever it waited for outlives it, and is the task now.
	if c, ok := s.live[j.waits]; ok && c.in == pid {
		c.in = 0
		s.live[j.waits] = c
		s.book(c.node).add(now, +1)
	}
}
