// Package carry moves descriptors between nodes: what a placed process has
// open goes on being the same open file for it and for its siblings at home.
//
// A placement has two halves. Home is the node where the process was born and
// where its deputy holds the original descriptors; guest is the node where the
// body runs. Every kind of descriptor is one Kind, which knows how to describe
// an open file at home (Claim), to serve it there (Serve), and to make its
// other end at the guest (Land). Kinds are tried in order; the first that
// claims a descriptor carries it. A descriptor that no kind claims, or that a
// kind refuses, makes the exec stay home: the error wraps unum.ErrStaysHome and
// names the object.
//
// Nothing here forks, execs or traces. Whatever must outlive the daemon is
// given to the Keeper and described in a file of Env.StateDir, so that a
// successor can resume it (Resume, with the same Desc).
package carry

import (
	"context"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"unum"
)

// Placement identifies one placed process to both halves.
type Placement struct {
	ID    uint64      // the operation id of the exec; unique in the cluster's life
	Pid   unum.Pid    // the same at home and at the guest
	Pgid  unum.Pid    // process group, at home
	Sid   unum.Pid    // session, at home
	Home  unum.NodeID // where the deputy and the descriptors are
	Guest unum.NodeID // where the body runs
}

// Proc is a process of this node's world, as /proc names it.
type Proc struct {
	HostPid int      // in the daemon's PID namespace; /proc/HostPid is it
	Pid     unum.Pid // in the world
	PidFD   int      // borrowed; for pidfd_getfd
	Uid     uint32   // effective

	// Notes is what a kind has found out for one descriptor and needs for the
	// next one of the same exec; the key is the kind's own type.
	Notes map[any]any
}

// Note keeps v in Notes.
func (p *Proc) Note(key, v any) {
	if p.Notes == nil {
		p.Notes = map[any]any{}
	}
	p.Notes[key] = v
}

// FD is one open file description of a caller that is about to be placed.
type FD struct {
	Nums  []int       // its numbers in the process, close-on-exec ones left out; never empty
	Link  string      // what /proc/PID/fd/N reads as
	Stat  unix.Stat_t // of the open file
	Flags int         // O_ flags from fdinfo, without O_CLOEXEC
	Pos   int64       // file position from fdinfo
}

// Desc is an open file description on its way to the guest, and what Resume
// gets after a restart.
type Desc struct {
	Kind  string
	Nums  []int
	Flags int
	Data  []byte // the kind's own, msgpack
}

// Env is what a node gives to its kinds.
type Env struct {
	Node     unum.NodeID
	Log      *slog.Logger
	Keeper   Keeper
	StateDir string // on tmpfs or any file system whose pages can be shared; files here outlive the daemon
	// Peer returns the other half's node.
	Peer func(unum.NodeID) (unum.Peer, error)
	// Handle and Accept register the kind's services with the node's endpoint.
	Handle func(method string, h unum.Handler)
	Accept func(service string, h unum.Acceptor)
	// Release makes the deputy of a placement close its copies of a description
	// that the body (and all its children) no longer have: without it a pipe's
	// reader at home would not see the end of file while the body lives.
	Release func(ctx context.Context, pl Placement, nums []int) error
	// WorldPids lists the processes of this node's world by their number in the
	// daemon's PID namespace.
	WorldPids func() ([]int, error)
	// Deputy says whether a process of that list is a deputy: it holds
	// descriptors for a body and reads none of them itself.
	Deputy func(hostPid int) bool
}

// Keeper holds descriptors that must outlive the daemon, in a process that
// does. Names are chosen by the caller and unique on the node.
type Keeper interface {
	// Keep stores a duplicate of f. It returns once f survives the daemon.
	Keep(ctx context.Context, name string, f *os.File) error
	// Take returns a fresh duplicate of what was kept; fs.ErrNotExist if nothing.
	Take(name string) (*os.File, error)
	// Drop closes the kept duplicate. Dropping what is not kept is no error.
	Drop(ctx context.Context, name string) error
}

// Kind carries one kind of descriptor.
type Kind interface {
	Name() string
	// Claim describes fd for the guest, at home, without any side effect. It
	// returns nil, nil for what is not of this kind, and an error wrapping
	// unum.ErrStaysHome for what is but cannot be carried as it stands.
	Claim(ctx context.Context, p *Proc, fd *FD) (*Desc, error)
	// Serve opens the home half before the body is started. file is a
	// duplicate of the description, owned by the returned Home. Until Commit
	// nothing may be taken from the description or written to it.
	Serve(ctx context.Context, pl Placement, d *Desc, file *os.File) (Home, error)
	// Land makes the guest's half, before the body's process exists.
	Land(ctx context.Context, pl Placement, d *Desc) (Guest, error)
	// ResumeHome and ResumeGuest do the same for a placement that was running
	// when this daemon's predecessor died. file is taken from the deputy, or from
	// the caller that is not converted yet: so Commit follows here too, and a
	// guest that never had its body may be asked to Land once more.
	ResumeHome(ctx context.Context, pl Placement, d *Desc, file *os.File) (Home, error)
	ResumeGuest(ctx context.Context, pl Placement, d *Desc) (Guest, error)
}

// Home is the half of a carried description at home.
type Home interface {
	// Commit says that the body runs and the deputy holds the description.
	Commit()
	// Drain returns when everything that the body wrote before it ended or
	// stopped has reached the description. The guest has been asked to Flush
	// before.
	Drain(ctx context.Context) error
	// Close ends the half; what the body did not consume is left for the next
	// reader. A description that children of the body still use goes on being
	// served, in the background, until they have closed it.
	Close() error
}

// Guest is the half of a carried description at the guest.
type Guest interface {
	// Local says how the body gets its end. It is asked once, before the body
	// starts; afterwards Started is called, and the file closed by the caller.
	Local() Local
	// Started says that the body runs (ok) or never will.
	Started(ok bool)
	// Flush returns when everything that the body wrote has been acknowledged
	// by home, and home knows how much of its input was consumed. It is called when the body has ended (final) or stopped.
	Flush(ctx context.Context, final bool) error
	// Close releases the half. Like Home.Close it leaves running what the
	// body's children still use.
	Close() error
}

// Local is a descriptor in the making: exactly one of File and Open is set.
type Local struct {
	File *os.File // to be injected under Desc.Nums
	Open *OpenAt  // to be opened by the new process itself
}

// OpenAt is an open that the new process makes while it is still root, in
// its working directory and world.
type OpenAt struct {
	Share bool   // relative to the node's private mount (see share), else absolute
	Path  string // as the world names it
	Flags int    // O_ flags; never O_CREAT, O_TRUNC or O_EXCL
	Seek  int64  // position to set, if > 0
}
