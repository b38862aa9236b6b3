package ctl

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"unum"
)

// Caller is who asks, as the kernel says.
type Caller struct {
	Pid    int // in the daemon's PID namespace; 0 if it cannot be seen from there
	Uid    uint32
	Gid    uint32
	Groups []uint32
	// NoNewPrivs and CapBounding limit what a caller's command may become.
	// They are known only of callers whose Pid is; otherwise nothing is held back.
	NoNewPrivs  bool
	CapBounding uint64
}

// Root says whether the caller may act for others.
func (c Caller) Root() bool { return c.Uid == 0 }

// May says whether the caller may see or signal what belongs to uid.
func (c Caller) May(uid uint32) bool { return c.Uid == 0 || c.Uid == uid }

// Node is a row of `unum nodes`.
type Node struct {
	ID      unum.NodeID    `json:"node"`
	State   unum.NodeState `json:"state"`
	Addr    string         `json:"addr"`
	Self    bool           `json:"self"` // the node that answers
	Voter   bool           `json:"voter"`
	Version string         `json:"version"`
	Load    unum.Load      `json:"load"`
	Epoch   unum.Epoch     `json:"epoch"`
}

// Proc is a row of `unum ps`: one process of the cluster. A placed process
// is one row, not two.
type Proc struct {
	Pid     unum.Pid      `json:"pid"`
	Ppid    unum.Pid      `json:"ppid"`
	Uid     uint32        `json:"uid"`
	Node    unum.NodeID   `json:"node"` // where it runs
	Home    unum.NodeID   `json:"home"` // where it was born
	State   string        `json:"state"`
	CPU     float64       `json:"cpu"` // percent of one processor, over its life
	Time    time.Duration `json:"time"`
	RSS     uint64        `json:"rss"` // bytes
	Started time.Time     `json:"started"`
	Command string        `json:"command"` // arguments joined by spaces
}

// Why tells how a process came to run where it runs.
type Why struct {
	Pid     unum.Pid    `json:"pid"`
	Node    unum.NodeID `json:"node"`
	Home    unum.NodeID `json:"home"`
	Command string      `json:"command"`
	Reasons []string    `json:"reasons"` // oldest first; one sentence each
}

// Rlimit is one resource limit, numbered as in setrlimit(2).
type Rlimit struct {
	Resource  int
	Soft, Max uint64
}

// RunRequest is what a client asks to be run.
type RunRequest struct {
	// ID is the client's, and no other request's: a client that lost the daemon
	// over its request sends it to the next one with the same ID, and the command
	// is started once.
	ID      string
	Argv    []string
	Env     []string
	Dir     string // absolute, as the world names it
	Umask   uint32
	Nice    int
	Rlimits []Rlimit
	Node    string // where: a node, here, elsewhere, auto; empty: as Env's UNUM_NODE says
	User    string // root only: name or uid[:gid] to run as; empty: the caller
	Detach  bool
	TTY     bool
	Termios *unix.Termios // of the client's terminal, for TTY
	Rows    uint16
	Cols    uint16
}

// Command is a process that a Backend is to start in the world, as a child of
// the world's pid 1 or of an agent, in a session of its own.
type Command struct {
	ID      string   // of the request
	Argv    []string // Argv[0] is searched in Env's PATH if it has no slash
	Env     []string // complete; UNUM_NODE in it decides the placement
	Dir     string
	Umask   uint32
	Nice    int
	Rlimits []Rlimit

	Uid, Gid    uint32
	Groups      []uint32
	NoNewPrivs  bool
	CapBounding uint64 // ^uint64(0): nothing is taken away

	// Files become descriptors 0, 1 and 2. The server closes its own after
	// Start has returned.
	Files [3]*os.File
	// TTY: Files are one terminal of the world, which becomes the controlling
	// terminal of the new session.
	TTY bool
}

// Exit is how a process ended.
type Exit struct {
	Code   int // exit code, if Signal is 0
	Signal int
	Core   bool
}

// Backend is the daemon as the control socket needs it. All methods may be
// called from any goroutine. They return errors that wrap the sentinels of
// package unum, and an errno where a system call refused.
type Backend interface {
	// Nodes lists the members, by index.
	Nodes(ctx context.Context, c Caller) ([]Node, error)
	// Ps lists the processes of the whole cluster.
	Ps(ctx context.Context, c Caller) ([]Proc, error)
	// Why explains the place of a process; unum.ErrNoProcess if none is known
	// by that number. It asks the node that knows.
	Why(ctx context.Context, c Caller, pid unum.Pid) (*Why, error)

	// CheckNode says whether a node of that name can take a process:
	// unum.ErrNoNode or unum.ErrNodeLost if it cannot.
	CheckNode(ctx context.Context, node unum.NodeID) error
	// OpenTTY opens a new terminal of the world's devpts.
	OpenTTY(ctx context.Context) (master, slave *os.File, err error)
	// Start starts a process and returns when its exec has succeeded. Otherwise
	// nothing is left, and the error carries the errno of the exec, or wraps
	// unum.ErrNoNode and the like. The process does not depend on ctx.
	Start(ctx context.Context, c Caller, cmd *Command) (unum.Pid, error)
	// Started returns the process that was started under an ID, also by the
	// daemon before this one, until Release. unum.ErrNoProcess if there is none,
	// unum.ErrDenied if it is not the caller's.
	Started(ctx context.Context, c Caller, id string) (unum.Pid, error)
	// Wait returns how a process that Start started has ended. It may be called
	// again, also by the successor of the daemon that started it, until Release.
	// unum.ErrNoProcess if it is not known; unum.ErrDenied if it is not the
	// caller's.
	Wait(ctx context.Context, c Caller, pid unum.Pid) (Exit, error)
	// Found lists the processes that a daemon before this one started and that
	// are not released, those of commands with a log too.
	Found(ctx context.Context) ([]unum.Pid, error)
	// Release says that nobody will Wait for pid any more.
	Release(pid unum.Pid)
	// Signal sends sig to the process group of a process that Start started.
	Signal(ctx context.Context, c Caller, pid unum.Pid, sig unix.Signal) error
	// Logs returns what a detached process of another node has written, from
	// offset, by asking that node's LogStore. It is called only for a pid of
	// which this node has no log; unum.ErrNoProcess if nobody has one.
	Logs(ctx context.Context, c Caller, pid unum.Pid, offset int64) (*LogChunk, error)
}
