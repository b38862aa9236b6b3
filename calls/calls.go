package calls

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"unum"
	"unum/deputy"
	"unum/seccomp"
	"unum/sys"
)

// World is this node's world, as calls needs it.
type World interface {
	HostPids() ([]int, error)
	ToHost(unum.Pid) (int, error)
	ToWorld(host int) (unum.Pid, error)
	Pid1HostPid() int
}

// Placements knows the deputies and bodies of this node.
type Placements interface {
	// Where returns the node on which the body of a deputy of this node runs.
	Where(unum.Pid) (unum.NodeID, bool)
	// Home returns the node that placed a body here.
	Home(unum.Pid) (unum.NodeID, bool)
	// Hosts says whether a process may be here by a placement.
	Hosts() bool
	// Bodies lists what is placed here, by host PID (0: not yet known).
	Bodies() map[unum.Pid]int
	// Adopter returns the node that has the parent of an orphan (a host PID) that
	// is on this node, if it is another one.
	Adopter(ctx context.Context, host int) (unum.NodeID, bool)
	// Nursed says whether there may be such orphans here.
	Nursed() bool
	// Subreaper notes that a process (a host PID) takes in orphans, or does not.
	Subreaper(host int, on bool) error
	// SignalBody sends a signal to the body of a deputy, past the deputy.
	SignalBody(ctx context.Context, pid unum.Pid, sig unix.Signal, info *sys.Siginfo) error
	// HandedOn returns when a signal that was sent to a deputy has been given to
	// its body, if it can be.
	HandedOn(ctx context.Context, pid unum.Pid, sig unix.Signal)
	// ClaimGroup says whether a body is still to be given a group's signal, and
	// notes that it is.
	ClaimGroup(id uint64, pid unum.Pid) bool
	// GroupDone notes that a group's signal was delivered here, to these bodies
	// too; given says that anybody got it.
	GroupDone(id uint64, bodies []unum.Pid, given bool)
	// GroupKnown says whether it was, by this daemon or one before it.
	GroupKnown(id uint64) bool
	// InDeputy makes a deputy run a program.
	InDeputy(ctx context.Context, pid unum.Pid, p *deputy.Program) (*deputy.Result, error)
	// AskDeputy makes a deputy run a program and reads what it left at an address.
	AskDeputy(ctx context.Context, pid unum.Pid, p *deputy.Program, at uint64, out []byte) (*deputy.Result, error)
	// Origin says of a pipe of this node, by its inode, which placement has it
	// carried here, and under which numbers its deputy holds the original.
	Origin(ino uint64) (o Origin, ok bool)
	// Continued is told of a SIGCONT that was sent to a deputy of this node. One
	// that was about to stop may have swept it away, and is then sent it again.
	Continued(pid unum.Pid, info *sys.Siginfo)
	// DeputyFile duplicates a descriptor of a deputy of this node.
	DeputyFile(pid unum.Pid, op uint64, num int) (*os.File, error)
	// PlacedGroup says whether a member of a process group is placed elsewhere.
	PlacedGroup(pgid unum.Pid) bool
	// EnsureGroup makes a group of a session of another node joinable here.
	EnsureGroup(ctx context.Context, sid, pgid unum.Pid) error
	// SyncTerminal brings the terminal up to date where members of a group are
	// placed, which has become the foreground.
	SyncTerminal(ctx context.Context, pgid unum.Pid)
	// Note adds to what `unum why` says about a process.
	Note(pid unum.Pid, text string)
	// Forbid keeps the command that a deputy stands for at home from now on.
	Forbid(pid unum.Pid, reason string)
}

// Origin is where a carried pipe comes from.
type Origin struct {
	Home unum.NodeID
	Pid  unum.Pid // of the deputy
	Op   uint64   // the placement
	Nums []int    // in the deputy
}

// Config is what the node gives.
type Config struct {
	Node     unum.NodeID
	Range    unum.PIDRange
	Cookie   uint64
	Log      *slog.Logger
	Registry *deputy.Registry
	Agent    *deputy.Stub // signals for others; root in the world
	World    World
	Placed   Placements
	// Peer reaches another node.
	Peer func(unum.NodeID) (unum.Peer, error)
	// NodeOf returns the node with an index, if it is up.
	NodeOf func(unum.NodeIndex) (unum.NodeID, bool)
	// Others lists the other nodes that are up.
	Others func() []unum.NodeID
}

// Calls answers trapped calls.
type Calls struct {
	cfg   Config
	log   *slog.Logger
	depth int // of PID namespaces, of the world's processes

	accounts *accounts
	waiters  waiters
	ipc      ipcReader
	blind    atomic.Bool // calls cannot be followed here

	groupMu   sync.Mutex // held while a group's signal is delivered
	lastGroup uint64     // the last one that the daemon before this one had the agent deliver

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// New makes it.
func New(cfg Config) (*Calls, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	one, err := sys.ReadTask(cfg.World.Pid1HostPid())
	if err != nil {
		return nil, &unum.Error{Op: "answer calls", Err: err}
	}
	c := &Calls{cfg: cfg, log: cfg.Log, depth: one.Depth}
	c.accounts = newAccounts(func(host int) bool {
		return host == cfg.World.Pid1HostPid() || cfg.Registry.Find(host) != nil
	})
	if tag, begun, err := cfg.Agent.Last(); err == nil && begun {
		c.lastGroup = tag
	}
	c.ipc.pid1 = cfg.World.Pid1HostPid()
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// Close ends what waits for other nodes. Calls in flight stay in the journal
// for the next daemon; a caller that is traced at this moment runs on.
func (c *Calls) Close() { c.cancel() }

// Register puts the calls that other nodes make on the endpoint.
func (c *Calls) Register(on func(method string, h unum.Handler)) {
	on("calls.kill", unum.Handle(c.onKill))
	on("calls.killpg", unum.Handle(c.onKillGroup))
	on("calls.ids", unum.Handle(c.onIDs))
	on("calls.mirror", unum.Handle(c.onMirror))
	on("calls.nonblock", unum.Handle(c.onNonblock))
	on("calls.proc", unum.Handle(c.onProc))
	on("calls.listens", unum.Handle(c.onListens))
	on("calls.refused", unum.Handle(c.onRefused))
}

// Handle answers a trapped call other than exec. It runs on the receiving
// goroutine and does not block.
func (c *Calls) Handle(n *seccomp.Notif) {
	if n.Arch != seccomp.ArchX86_64 {
		n.Continue()
		return
	}
	switch n.Nr {
	case unix.SYS_KILL, unix.SYS_RT_SIGQUEUEINFO:
		c.kill(n)
	case unix.SYS_TKILL, unix.SYS_TGKILL, unix.SYS_RT_TGSIGQUEUEINFO:
		c.threadKill(n)
	case unix.SYS_WAIT4, unix.SYS_WAITID:
		c.wait(n)
	case unix.SYS_GETRUSAGE, unix.SYS_TIMES:
		c.times(n)
	case unix.SYS_GETPPID:
		c.getppid(n)
	case unix.SYS_GETPGID, unix.SYS_GETSID:
		c.getids(n)
	case unix.SYS_SETPGID, unix.SYS_SETSID:
		c.setids(n)
	case unix.SYS_IOCTL:
		if uint32(n.Args[1]) == seccomp.FIONBIO {
			c.nonblock(n)
			return
		}
		c.terminal(n)
	case unix.SYS_FCNTL:
		c.nonblock(n)
	case unix.SYS_PRCTL:
		if n.Args[0] == unix.PR_SET_CHILD_SUBREAPER {
			c.subreaper(n)
			return
		}
		c.deathSignal(n)
	case unix.SYS_CONNECT, unix.SYS_BIND, unix.SYS_LISTEN:
		c.socket(n)
	case unix.SYS_SHMGET, unix.SYS_SEMGET, unix.SYS_MSGGET, unix.SYS_MQ_OPEN:
		c.sysv(n)
	case unix.SYS_LANDLOCK_RESTRICT_SELF:
		n.Continue()
	default:
		c.proc(n)
	}
}

// go_ runs f in a goroutine of c's.
func (c *Calls) go_(f func(ctx context.Context)) {
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		f(c.ctx)
	}()
}

// here says whether a process with a number of another node's range runs on
// this one as itself: a body, and not a stub that holds the number. One that is
// being born is a stub, root's, and is reached by its home; so is one that has
// begun and is not known to have, but by itself.
func (c *Calls) here(n *seccomp.Notif, pid unum.Pid) bool {
	host, body := c.cfg.Placed.Bodies()[pid]
	if !body || host != 0 {
		return body
	}
	return c.calledBy(n, pid)
}

// calledBy says whether it is a process's own call.
func (c *Calls) calledBy(n *seccomp.Notif, pid unum.Pid) bool {
	tgid, err := sys.Tgid(n.Tid)
	if err != nil {
		return false
	}
	self, err := c.cfg.World.ToWorld(tgid)
	return err == nil && self == pid
}

// own says whether a number is not of another node's range.
func (c *Calls) own(pid unum.Pid) bool {
	_, ok := unum.IndexOf(pid)
	return !ok || c.cfg.Range.Contains(pid)
}

// caller reads who made a call. nested says that its numbers are those of a
// PID namespace of its own, which are none of the cluster's.
func (c *Calls) caller(n *seccomp.Notif) (t *sys.Task, nested bool, err error) {
	if t, err = sys.ReadTask(n.Tid); err != nil {
		return nil, false, err
	}
	if !n.Valid() {
		return nil, false, unix.ESRCH
	}
	return t, t.Depth != c.depth, nil
}

// forCaller runs f, in a goroutine of its own, with the caller of a trapped call
// if that lives in the world itself; a call of any other is made.
func (c *Calls) forCaller(n *seccomp.Notif, f func(ctx context.Context, t *sys.Task)) {
	c.go_(func(ctx context.Context) {
		t, nested, err := c.caller(n)
		if err != nil || nested {
			n.Continue()
			return
		}
		f(ctx, t)
	})
}

// home reaches the node on which a process was born.
func (c *Calls) home(pid unum.Pid) (unum.Peer, error) {
	i, ok := unum.IndexOf(pid)
	if !ok {
		return nil, unum.ErrNoProcess
	}
	id, ok := c.cfg.NodeOf(i)
	if !ok || id == c.cfg.Node {
		return nil, unum.ErrNoProcess
	}
	return c.cfg.Peer(id)
}
