// Package rexec places processes at exec: it gathers what a caller is, has a
// process like it made on another node, and turns the caller into the deputy
// of that process, so that parent, shell and terminal notice nothing.
//
// The steps of a placement, and what a failure at each does:
//
//	home                                guest
//	gather the caller                                    exec runs here
//	serve its descriptors                                exec runs here
//	rexec.start ───────────────────▶    session, group
//	                                    fork, descriptors, exec
//	            ◀─────────────────── ok or errno         the caller's exec fails
//	                                                     by that errno
//	the guest is lost before that                        the caller dies by SIGKILL
//	convert the caller                                   the body is killed; the
//	                                                     caller execs here
//	the deputy forwards signals ──▶     the body
//	end of the deputy  ◀─────────────── end of the body
package rexec

import (
	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
	"unum/carry/tty"
	"unum/sys"
)

// Spec is everything that a new process takes over from the one that it
// continues. PIDs are the world's.
type Spec struct {
	Pid  unum.Pid // 0: the next free one
	Pgid unum.Pid
	Sid  unum.Pid

	Path string // as the caller named it
	Argv []string
	Env  []string
	Cwd  string

	// What Path led to at home, and the directory. The guest must find the same
	// there: a file system may be mounted on one node only. File is "" where
	// nothing was looked up.
	File    string
	FileIno uint64
	CwdIno  uint64

	Umask   uint32
	Limits  [16]unix.Rlimit
	Nice    int
	Policy  int
	OOM     int // oom_score_adj
	IOPrio  int // ioprio_get(2)
	Persona uint64

	Uid, Gid   [4]uint32
	Groups     []uint32
	CapInh     uint64
	CapPrm     uint64
	CapEff     uint64
	CapBnd     uint64
	CapAmb     uint64
	NoNewPrivs bool
	Reaper     bool          // it is a child subreaper
	Reapers    []unum.NodeID // nodes on which its orphans need their numbers, if there is one above it

	SigBlk, SigIgn uint64
	SigPnd         uint64 // blocked and pending: an exec keeps them

	ctty      int  // descriptor that becomes the controlling terminal, or -1
	fg        bool // it leads the foreground group of its terminal
	placeable bool // its exec asks for a place, as any exec does
}

// Instead of a number: the process starts a session or a group of its own.
const (
	newSession unum.Pid = -1
	newGroup   unum.Pid = -1
)

// startReq asks the guest for a body.
type startReq struct {
	Place carry.Placement
	Spec  Spec
	Descs []*carry.Desc
	TTY   *tty.Desc // the session's controlling terminal, nil if none

	end *tty.End // the guest's
}

// startRes is the guest's answer: Errno of the exec, or 0.
type startRes struct {
	Errno int
	// Refused says why the guest could not even try; the exec then stays home.
	Refused string
}

// signalReq is a signal on its way to a body.
type signalReq struct {
	ID   uint64
	Pid  unum.Pid
	Info sys.Siginfo
	// Once tells signals of one deputy apart; the guest drops what it has seen.
	Once uint64
}

// eventReq tells home what became of a body.
type eventReq struct {
	ID     uint64
	Pid    unum.Pid
	Kind   eventKind
	Status int // exit code or signal
	Core   bool
	Usage  unum.Usage
	// After is the signal to its group that the body had last, if it has ended.
	After uint64
	// Seq grows with each event of a body, so that a stop which is told twice
	// is done once. Ends need none.
	Seq uint64
}

type eventKind int

const (
	exited eventKind = iota + 1
	killed
	stopped
	continued
)

// String names an event as `unum why` shows it.
func (k eventKind) String() string {
	return [...]string{"?", "exited", "killed", "stopped", "continued"}[k]
}
