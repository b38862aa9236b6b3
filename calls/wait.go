package calls

import (
	"context"
	"encoding/binary"
	"errors"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"unum"
	"unum/ptrace"
	"unum/seccomp"
	"unum/sys"
)

// waiters are the threads that were let into a wait that returns a rusage. A
// wait is continued as it is; if a body ends whose ancestor sits in one, that
// thread is made to issue its call again, before the deputy ends.
type waiters struct {
	mu   sync.Mutex
	tids map[int]map[int]bool // by process, host PIDs
}

// add notes a thread. What is left over from threads that waited long ago is
// harmless, and dropped when it becomes much.
func (w *waiters) add(tgid, tid int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tids == nil || len(w.tids) > 4096 {
		w.tids = map[int]map[int]bool{}
	}
	if w.tids[tgid] == nil {
		w.tids[tgid] = map[int]bool{}
	}
	w.tids[tgid][tid] = true
}

// take returns the threads of a process, and forgets them.
func (w *waiters) take(tgid int) (out []int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for tid := range w.tids[tgid] {
		out = append(out, tid)
	}
	delete(w.tids, tgid)
	return out
}

func (w *waiters) any() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.tids) > 0
}

// Account notes what a body used; its deputy child (a host PID) is about to
// end, and does so when Account has returned.
func (c *Calls) Account(child int, u unum.Usage) {
	ancestors := c.accounts.ended(child, u)
	if !c.waiters.any() {
		return
	}
	for _, p := range ancestors {
		for _, tid := range c.waiters.take(p) {
			if !waits(tid) {
				continue
			}
			if err := ptrace.Reissue(tid); err != nil {
				c.log.Debug("reissue a wait", "tid", tid, "err", err)
			}
		}
	}
}

// waits says whether a thread is in a wait, or may just be on its way into one.
func waits(tid int) bool {
	b, err := sys.ReadProc("/proc/" + strconv.Itoa(tid) + "/syscall")
	if err != nil {
		return false
	}
	nr, _, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	return nr == "running" || nr == strconv.Itoa(unix.SYS_WAIT4) || nr == strconv.Itoa(unix.SYS_WAITID)
}

// Reaped returns what the children of a body (a host PID) used on further
// nodes. It is asked once, when the body has been reaped.
func (c *Calls) Reaped(host int) unum.Usage { return c.accounts.take(host) }

// wait answers a wait4 or waitid that wants a rusage.
func (c *Calls) wait(n *seccomp.Notif) {
	tgid, err := sys.Tgid(n.Tid)
	if err != nil {
		n.Continue()
		return
	}
	c.waiters.add(tgid, n.Tid)
	if !c.accounts.hold(tgid) {
		n.Continue()
		return
	}
	c.go_(func(context.Context) {
		// Before the caller goes on: it may ask for the sum at once.
		release := sync.OnceFunc(func() { c.accounts.release(tgid) })
		defer release()
		c.finish(n, func(ret int64) {
			c.patchWait(n, tgid, ret)
			release()
		})
	})
}

// finish lets the caller make its call and runs then before it sees the
// result. A call that cannot be followed is continued.
func (c *Calls) finish(n *seccomp.Notif, then func(ret int64)) {
	if c.blind.Load() {
		n.Continue()
		return
	}
	taken, err := ptrace.Finish(n, then)
	if errors.Is(err, ptrace.ErrNoFollow) {
		// The caller issues its call again, and would for ever.
		c.blind.Store(true)
		c.log.Error("times of placed children do not count on this node", "err", err)
	} else if err != nil {
		c.log.Debug("follow a call", "tid", n.Tid, "nr", n.Nr, "err", err)
	}
	if !taken {
		n.Continue()
	}
}

// patchWait adds what the child that was waited for used elsewhere.
func (c *Calls) patchWait(n *seccomp.Notif, tgid int, ret int64) {
	child, at := unum.Pid(ret), n.Args[3]
	if n.Nr == unix.SYS_WAITID {
		at = n.Args[4]
		var si sys.Siginfo
		if n.Args[2] == 0 {
			return
		}
		if _, err := sys.ReadMem(n.Tid, n.Args[2], si[:]); err != nil {
			return
		}
		child = unum.Pid(si.Pid())
	}
	if ret < 0 || child <= 0 {
		return
	}
	c.patchUsage(n.Tid, at, c.accounts.of(tgid, child))
}

func (c *Calls) patchUsage(tid int, at uint64, u unum.Usage) {
	if u == (unum.Usage{}) {
		return
	}
	var b [usageSize]byte
	if _, err := sys.ReadMem(tid, at, b[:]); err != nil {
		return
	}
	addUsage(b[:], u)
	if err := sys.WriteMem(tid, sys.Piece{Addr: at, Data: b[:]}); err != nil {
		c.log.Warn("add to a rusage", "tid", tid, "err", err)
	}
}

// usageSize is that of struct rusage: 18 words (man 2 getrusage).
const usageSize = 144

// addUsage adds to a struct rusage.
func addUsage(b []byte, u unum.Usage) {
	word := func(i int) int64 { return int64(binary.LittleEndian.Uint64(b[8*i:])) }
	put := func(i int, v int64) { binary.LittleEndian.PutUint64(b[8*i:], uint64(v)) }
	time := func(i int, us int64) {
		us += word(i)*1e6 + word(i+1)
		put(i, us/1e6)
		put(i+1, us%1e6)
	}
	time(0, u.Utime)
	time(2, u.Stime)
	put(4, max(word(4), u.MaxRSS))
	for i, v := range map[int]int64{
		8: u.MinFlt, 9: u.MajFlt, 11: u.InBlock, 12: u.OutBlock, 16: u.NVCSw, 17: u.NIvCSw,
	} {
		put(i, word(i)+v)
	}
}

// clockTick is the unit of times(): USER_HZ is 100.
const clockTick = 10_000 // microseconds

// times answers getrusage(RUSAGE_CHILDREN) and times().
func (c *Calls) times(n *seccomp.Notif) {
	if c.accounts.empty() {
		n.Continue()
		return
	}
	tgid, err := sys.Tgid(n.Tid)
	if err != nil {
		n.Continue()
		return
	}
	u := c.accounts.children(tgid)
	if u == (unum.Usage{}) {
		n.Continue()
		return
	}
	c.go_(func(context.Context) {
		c.finish(n, func(ret int64) {
			if ret < 0 {
				return
			}
			if n.Nr == unix.SYS_GETRUSAGE {
				c.patchUsage(n.Tid, n.Args[1], u)
				return
			}
			// struct tms: utime, stime, cutime, cstime.
			var b [16]byte
			if _, err := sys.ReadMem(n.Tid, n.Args[0]+16, b[:]); err != nil {
				return
			}
			le := binary.LittleEndian
			le.PutUint64(b[0:], le.Uint64(b[0:])+uint64(u.Utime/clockTick))
			le.PutUint64(b[8:], le.Uint64(b[8:])+uint64(u.Stime/clockTick))
			if err := sys.WriteMem(n.Tid, sys.Piece{Addr: n.Args[0] + 16, Data: b[:]}); err != nil {
				c.log.Warn("add to times", "tid", n.Tid, "err", err)
			}
		})
	})
}
