// Package cluster is the membership of a cluster: which nodes there are, who
// holds which index and which epoch, and whose lease still runs. Store is the
// contract; cluster/etcd keeps it in an embedded etcd, cluster/mem in memory
// for tests, and cluster/clustertest holds both to it.
//
// A node has a record, which stays until it is released, and a lease, which
// runs out unless its daemon renews it. The record is what keeps an index from
// being given again; the lease says that somebody lives.
//
//	(none) ──Register──▶ joining ──SetState──▶ up ──SetState──▶ draining ──▶ left
//	                        └────────┬──────────┘                              │
//	              DeclareDown, epoch+1 ▼                                        │
//	                                down ──Register──▶ joining ◀──Register, epoch+1
//	              down, left ──Release──▶ (none)
//
// A record that is joining, up or draining, and whose lease ran out, is listed
// as suspect.
package cluster

import (
	"context"
	"errors"
	"time"

	"unum"
)

// LeaseTTL is how long a node lives without renewing its lease.
const LeaseTTL = 10 * time.Second

// ErrConflict is what Swap returns when the key has another revision.
var ErrConflict = errors.New("key was changed by somebody else")

// ErrClosed is what a store returns after its Close.
var ErrClosed = errors.New("cluster store is closed")

// Registration is what a daemon says of its node.
type Registration struct {
	ID          unum.NodeID
	Addr        string // host:port of its one TLS port
	Incarnation unum.Incarnation
	Version     string
	Voter       bool
	// Fresh says that nothing lives of what ran on the node before. Its record
	// gets another epoch, so that the others learn that, unless it was down.
	Fresh bool
	// Fixed asks for Index and no other, as where a node's PID range was
	// decided before it registers.
	Fixed bool
	Index unum.NodeIndex
}

// Store is the coordination store as one node sees it. All methods may be
// called from any goroutine. Errors are *unum.Error.
type Store interface {
	// Register makes or takes over the node's record and begins its lease.
	// A record of the same name keeps its index and its epoch, also after its
	// lease ran out, so that a daemon that was restarted goes on; after left,
	// or if the registration is Fresh, its epoch is raised. Errors: ErrNoIndex
	// when all 64 indexes are held, ErrExists when a node of that name lives at
	// another address, or when a Fixed index is another node's or the record has
	// another one.
	Register(ctx context.Context, r Registration) (Lease, error)

	// Nodes lists all records by index. The loads are empty: they travel with
	// heartbeats.
	Nodes(ctx context.Context) ([]unum.NodeInfo, error)
	// Watch sends the list now and after every change; who is slow gets the
	// latest only. The channel is closed when ctx ends or the store closes.
	Watch(ctx context.Context) (<-chan []unum.NodeInfo, error)

	// SetState moves a record to up, draining or left. Left ends the lease.
	// ErrNoNode without a record; ErrStaleEpoch if the record's epoch is
	// another.
	SetState(ctx context.Context, id unum.NodeID, epoch unum.Epoch, s unum.NodeState) error
	// DeclareDown ends the life of a node as it was seen: one transaction
	// raises the epoch, sets down and ends the lease. It returns the raised
	// epoch. ErrStaleEpoch, and nothing changed, if the record is not as seen
	// any more: its epoch or incarnation is another, or seen.State is suspect,
	// the lease had run out, and it runs again. Incarnation 0 is any. To
	// declare the same life down again is no error.
	DeclareDown(ctx context.Context, seen unum.NodeInfo) (unum.Epoch, error)
	// Release gives the index of a node back. The caller knows that no process
	// of its range lives anywhere. The record must be down or left; ErrExists
	// otherwise. To release what has no record is no error.
	Release(ctx context.Context, id unum.NodeID) error

	// Get returns the value and revision of a key; fs.ErrNotExist if there is
	// none. Keys are paths without a leading slash.
	Get(ctx context.Context, key string) ([]byte, Revision, error)
	// Swap sets a key whose revision is old; 0 is a key that does not exist.
	// value nil deletes it. ErrConflict if the revision is another.
	Swap(ctx context.Context, key string, old Revision, value []byte) (Revision, error)
	// List returns all keys with a prefix.
	List(ctx context.Context, prefix string) (map[string]Entry, error)

	// Close ends watches and renewals and waits for them. Leases run out by
	// themselves.
	Close() error
}

// Revision counts the changes of the store; it is never 0 for a key that
// exists.
type Revision int64

// Entry is one key of List.
type Entry struct {
	Value    []byte
	Revision Revision
}

// Lease is a registered node's hold on its index and epoch.
type Lease interface {
	// Node is the record as it was registered.
	Node() unum.NodeInfo
	// Lost is closed when the lease is no longer held: it could not be renewed
	// for its time, the node was declared down, or another incarnation took
	// the record over. It is also closed by Close.
	Lost() <-chan struct{}
	// Err says why, after Lost.
	Err() error
	// Close stops renewing. The lease runs out by itself, so that a daemon
	// which is restarted at once is not missed.
	Close() error
}
