// Package world makes the namespaces in which a node's cluster processes
// live, and finds them again after the daemon was restarted.
//
// A world is a PID, mount, IPC, UTS and time namespace; the network namespace
// is the node's. Its pid 1 is a stub (see package deputy) that outlives the
// daemon and keeps two descriptors for it: the seccomp listener at ListenerFD
// and /proc/sys/kernel/ns_last_pid at LastPidFD.
//
// The daemon cannot become pid 1 itself and a program with threads cannot
// prepare one in place, so the start has two stages, each a run of this same
// program:
//
//	daemon ──exec──▶ stage 1: unshares the time namespace, sets its offsets
//	                   └─clone3─▶ stage 2, pid 1: mounts, hostname, limits,
//	                                PID range, filter ──execveat──▶ stub
//	                 stage 1 ends, so pid 1 becomes a child of the node's init
package world

import (
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/world/cgroup"
)

// Descriptors of pid 1. All others are closed.
const (
	ListenerFD = 100 // seccomp listener
	LastPidFD  = 101 // ns_last_pid of the world, read and write
)

// Inside the world.
const (
	PubPath  = "/run/unum"      // Config.PubDir
	BinPath  = "/run/unum/bin"  // holds the command unum; belongs on the PATH
	nodeFile = "/run/unum/node" // the node's name: says that one is in a world
)

// The hidden commands that the program must hand to Stage1 and Stage2.
const (
	Stage1Command = "world-stage1"
	Stage2Command = "world-stage2"
)

// Config says what world to make.
type Config struct {
	Node     unum.NodeID
	Hostname string        // of the cluster, the same in every world
	Range    unum.PIDRange // PIDs that are born here
	Root     string        // tree that becomes /; "" is "/"
	RunDir   string        // directory that becomes /run, the same on all nodes
	PubDir   string        // directory that becomes /run/unum, the node's own
	Mount    string        // empty directory to mount on; "" is "root" beside PubDir
	Cgroup   *cgroup.Group `json:"-"` // the node's; the world's is "world" below it

	Stub   []byte            // ELF image of pid 1
	Filter []unix.SockFilter // seccomp filter; empty is none, and then no listener
	Cookie uint64            // sixth argument of the exec of the stub

	// What is added to the machine's clocks, so that they agree from node to
	// node.
	MonotonicOffset time.Duration
	BoottimeOffset  time.Duration

	Exe string       // this program; "" is /proc/self/exe
	Log *slog.Logger `json:"-"` // nil discards
}
