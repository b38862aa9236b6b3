package rexec

import (
	"context"
	"log/slog"
	"os"

	"unum"
	"unum/carry"
	"unum/deputy"
	"unum/sched"
)

// Config is what the node gives to placement.
type Config struct {
	Node     unum.NodeID
	Index    unum.NodeIndex
	Cookie   uint64
	Log      *slog.Logger
	StateDir string

	Registry *deputy.Registry
	Root     *deputy.Stub // the root agent
	Mount    *os.File     // the node's private mount, or nil
	Carry    *carry.Set
	Terminal Terminal // may be nil: then sessions with a terminal are carried without it

	Peer func(unum.NodeID) (unum.Peer, error)
	// Place decides; Finished, Failed and Forbid are what it learns from.
	Place    func(sched.Request) sched.Decision
	Finished func(unum.Pid, sched.Outcome)
	Failed   func(unum.Pid)
	// Account adds what a placed child used to its parent's children (host
	// PIDs). May be nil.
	Account func(parent, child int, u Usage)

	// WorldPids lists the processes of this world by their host PIDs.
	WorldPids func() ([]int, error)
	// WorldRoot is an open directory: the world's root.
	WorldRoot *os.File
	// Filters is how many seccomp filters every process of the world has.
	Filters int
}

// Terminal carries the controlling terminals of sessions (see carry/tty).
type Terminal interface {
	// Describe says what the guest needs to know of the controlling terminal
	// of p's session; nil if it has none.
	Describe(ctx context.Context, p *carry.Proc) ([]byte, error)
	// Session makes the terminal of a session at the guest. bind, if not nil, is called
	// with the session's agent once that exists.
	Session(ctx context.Context, home unum.NodeID, sid unum.Pid, desc []byte) (slave *os.File, bind func(TerminalAgent), err error)
	// Forget ends it.
	Forget(sid unum.Pid)
}

// TerminalAgent acts from within a session.
type TerminalAgent interface {
	// SetForeground makes pgid the foreground group of the session's terminal,
	// or, if there is no such group here, the agent's own.
	SetForeground(ctx context.Context, pgid unum.Pid) error
}
