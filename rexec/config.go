package rexec

import (
	"context"
	"log/slog"
	"os"

	"unum"
	"unum/carry"
	"unum/carry/tty"
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
	// Mount returns a duplicate of the root of the node's private mount; it may
	// wait for the file server.
	Mount    func(context.Context) (*os.File, error)
	Carry    *carry.Set
	Terminal *tty.Kind // one of Carry's kinds; it carries controlling terminals too

	Peer func(unum.NodeID) (unum.Peer, error)
	// Settled says whether a value of UNUM_NODE can be decided at once, Settle
	// waits until it can be or has been waited for long enough: a daemon that
	// has just started may not know of a node yet.
	Settled func(hint string) bool
	Settle  func(ctx context.Context, hint string)
	// Alone says whether no other node is up.
	Alone func() bool
	// Quick answers what needs little knowledge of the caller (sched.Quick).
	Quick func(sched.Request) (sched.Decision, bool)
	// Place decides; Finished, Failed and Forbid are what it learns from.
	Place    func(sched.Request) sched.Decision
	Finished func(unum.Pid, sched.Outcome)
	Failed   func(unum.Pid)
	// Account adds what a placed child used to its parent's children (host
	// PIDs). May be nil.
	Account func(parent, child int, u unum.Usage)
	// Reaped returns what the children of a body that has ended (its host PID)
	// used on further nodes. May be nil.
	Reaped func(host int) unum.Usage

	// NodeAt returns the node with an index.
	NodeAt func(unum.NodeIndex) (unum.NodeID, bool)

	// WorldPids lists the processes of this world by their host PIDs.
	WorldPids func() ([]int, error)
	// ToHost translates a PID of this world into the daemon's namespace.
	ToHost func(unum.Pid) (int, error)
	// WorldRoot is an open directory: the world's root.
	WorldRoot *os.File
	// Filters is how many seccomp filters every process of the world has.
	Filters int
}
