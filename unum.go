// Package unum is the vocabulary that every room shares: nodes, PIDs and
// their ranges, epochs, errors, and the small interface through which a
// mechanism talks to another node. It does no I/O and imports no other room.
package unum

import (
	"fmt"
	"strconv"
)

// NodeID is the name of a node, such as "n2". It is unique in a cluster and
// never empty.
type NodeID string

// NodeIndex numbers the nodes of a cluster, 0 to MaxNodes-1. It is leased, and
// it alone decides a node's PID range. An index is not given again while a
// process of its range may live.
type NodeIndex int

// MaxNodes is the number of nodes a cluster can have, and so the number of
// PID ranges.
const MaxNodes = 64

// Pid is a process id as programs inside the world see it. It is the same
// number on every node.
type Pid int32

// PIDs below FirstPid belong to no node: this is where a wrapped cursor
// lands. RangeSize times MaxNodes above FirstPid just fills the kernel's
// PID_MAX_LIMIT of 4,194,304 (include/linux/threads.h).
const (
	FirstPid  Pid = 65536
	RangeSize     = 64512
	PidLimit  Pid = 4194304
)

// PIDRange is the half-open range [First, First+Size) of PIDs that are born on
// one node.
type PIDRange struct {
	First Pid
	Size  int
}

// RangeOf returns the PID range of a node. Preconditions: 0 <= i < MaxNodes.
func RangeOf(i NodeIndex) PIDRange {
	return PIDRange{First: FirstPid + Pid(i)*RangeSize, Size: RangeSize}
}

// Last returns the last PID of the range.
func (r PIDRange) Last() Pid { return r.First + Pid(r.Size) - 1 }

// Contains says whether p is born in the range.
func (r PIDRange) Contains(p Pid) bool { return p >= r.First && p <= r.Last() }

func (r PIDRange) String() string { return fmt.Sprintf("%d-%d", r.First, r.Last()) }

// IndexOf returns the index of the node in whose range p lies. ok is false
// for PIDs that belong to no node: pid 1 of a world, and births after a wrap.
func IndexOf(p Pid) (i NodeIndex, ok bool) {
	if p < FirstPid || p >= PidLimit {
		return 0, false
	}
	return NodeIndex((p - FirstPid) / RangeSize), true
}

func (p Pid) String() string { return strconv.Itoa(int(p)) }

// Epoch counts the lives of a node within the cluster. It is raised by a
// transaction in the coordination store when the node is declared lost; a
// frame that carries an older epoch is refused.
type Epoch uint64

// Incarnation tells two runs of one daemon apart. A peer that sees another
// incarnation knows that the daemon was restarted, not the node.
type Incarnation uint64

// NodeState is where a node stands in its life.
//
//	joining → up ⇄ suspect → down
//	          up → draining → left
type NodeState string

const (
	Joining  NodeState = "joining"  // has an index, not yet a world
	Up       NodeState = "up"       // heartbeats arrive
	Suspect  NodeState = "suspect"  // silent for longer than a detection period
	Down     NodeState = "down"     // declared lost; its epoch was raised
	Draining NodeState = "draining" // up, but takes no new guests
	Left     NodeState = "left"     // gone on purpose
)

// Load is what a node tells of itself with each heartbeat; placement decides
// by it and by nothing else.
type Load struct {
	CPUs     float64 // processors the node may use; a cap makes it fractional
	Running  float64 // runnable tasks of the world, smoothed over about a second
	Guests   int     // bodies hosted for other nodes
	MemTotal uint64  // bytes
	MemFree  uint64  // bytes available without swapping
	At       int64   // sender's clock, nanoseconds, only for ordering
}

// NodeInfo is one row of the membership.
type NodeInfo struct {
	ID          NodeID
	Index       NodeIndex
	Addr        string // host:port of the node's one TLS port
	State       NodeState
	Epoch       Epoch
	Incarnation Incarnation
	Version     string
	Load        Load
	Voter       bool
}
