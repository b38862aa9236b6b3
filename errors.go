package unum

import (
	"errors"
	"fmt"
	"strings"
)

// Sentinels. They survive a call to another node, so errors.Is works on what
// Peer.Call returns.
var (
	ErrLinkLost   = errors.New("connection to the node was lost")
	ErrNodeLost   = errors.New("node is lost")
	ErrNoNode     = errors.New("no such node")
	ErrNoProcess  = errors.New("no such process")
	ErrStaysHome  = errors.New("cannot be carried to another node")
	ErrNoIndex    = errors.New("all 64 node indexes are in use")
	ErrStaleEpoch = errors.New("epoch is stale")
	ErrVersion    = errors.New("versions differ")
	ErrExists     = errors.New("exists already")
	ErrDenied     = errors.New("permission denied")
	ErrNoMethod   = errors.New("peer does not know this call")
	ErrNoFeature  = errors.New("kernel feature is missing")
)

// ErrUnanswered is an ErrNodeLost that leaves it open whether the peer has heard
// a call, and done what it asks for.
var ErrUnanswered = fmt.Errorf("%w before it answered", ErrNodeLost)

// Sentinels lists every sentinel that may cross the wire, under the name it
// crosses by.
var Sentinels = map[string]error{
	"link-lost": ErrLinkLost, "node-lost": ErrNodeLost, "no-node": ErrNoNode,
	"no-process": ErrNoProcess, "stays-home": ErrStaysHome, "no-index": ErrNoIndex,
	"stale-epoch": ErrStaleEpoch, "version": ErrVersion, "exists": ErrExists,
	"denied": ErrDenied, "no-method": ErrNoMethod, "no-feature": ErrNoFeature,
}

// Error says what failed, where, and on which object, in the order a user
// reads it: `place 65601 on n2: fd 7 is an io_uring: cannot be carried`.
// It is made once, at the exported edge of a room; inside, errors are wrapped
// with %w.
type Error struct {
	Op   string // what was tried: "place", "join", "carry"
	Node NodeID // where, if it was another node
	Pid  Pid    // which process, or 0
	Path string // which object: a path, a descriptor, a device
	Err  error
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Pid != 0 {
		b.WriteString(" " + e.Pid.String())
	}
	if e.Node != "" {
		b.WriteString(" on " + string(e.Node))
	}
	if e.Path != "" {
		b.WriteString(": " + e.Path)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }
