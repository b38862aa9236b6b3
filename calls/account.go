package calls

import (
	"sync"

	"unum"
	"unum/sys"
)

// accounts holds what bodies used that ended elsewhere, where the kernel does
// not have it: at first under their deputies; once a deputy is reaped, with
// its parent's children; once the parent is, with its parent's, as the kernel
// does with its own times (kernel/exit.c, wait_task_zombie). Which of them is
// reaped is seen when somebody asks.
type accounts struct {
	mu    sync.Mutex
	procs map[int]*account // by host PID
	look  func(host int) (ppid int, start uint64, ok bool)
	top   func(host int) bool // nobody asks it: a stub, or pid 1
	name  func(host int) (unum.Pid, error)
	held  map[int]int // parents whose wait is being patched
}

// maxAccounts bounds what is kept of bodies that nobody asks about.
const maxAccounts = 512

// account is one process that is, or is an ancestor of, a placed one.
type account struct {
	host  int
	start uint64
	up    int        // parent, a host PID; 0 if nobody reaps it who could ask
	own   unum.Usage // of its body; for a deputy whose body has ended
	kids  unum.Usage // of what it has reaped
	world unum.Pid
}

// lookProc reads parent and start time of a process. A zombie is still there.
func lookProc(host int) (ppid int, start uint64, ok bool) {
	b, err := sys.ReadBirth(host)
	return b.Ppid, b.Start, err == nil
}

func newAccounts(top func(host int) bool) *accounts {
	return &accounts{procs: map[int]*account{}, look: lookProc, name: sys.WorldPid, top: top, held: map[int]int{}}
}

// ended notes what the body of child, a deputy that is about to end, used. It
// returns the ancestors of child, nearest first.
func (a *accounts) ended(child int, u unum.Usage) (ancestors []int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.procs) > maxAccounts {
		a.sweep()
	}
	c := a.enter(child)
	if c == nil {
		return nil
	}
	c.own = u
	for up := c.up; up != 0 && !a.top(up); {
		ancestors = append(ancestors, up)
		p := a.enter(up)
		if p == nil {
			break
		}
		up = p.up
	}
	return ancestors
}

// enter finds or makes the account of a process; nil if there is none.
func (a *accounts) enter(host int) *account {
	ppid, start, ok := a.look(host)
	if !ok {
		return nil
	}
	p := a.procs[host]
	if p != nil && p.start != start {
		a.fold(p)
		p = nil
	}
	if p == nil {
		p = &account{host: host, start: start}
		p.world, _ = a.name(host)
		a.procs[host] = p
	}
	p.up = ppid
	return p
}

// fold passes on what a process that was reaped leaves to its parent.
func (a *accounts) fold(p *account) {
	delete(a.procs, p.host)
	if up := a.procs[p.up]; up != nil {
		up.kids.Add(p.own)
		up.kids.Add(p.kids)
	}
}

// sweep folds all that are gone, children before their parents. What is being
// waited for stays, and what the daemon itself will take: a body.
func (a *accounts) sweep() {
	gone := map[*account]bool{}
	full := len(a.procs) > maxAccounts
	for _, p := range a.procs {
		ppid, start, ok := a.look(p.host)
		switch {
		case ok && start == p.start:
			p.up = ppid // another if its parent has ended
		case a.held[p.up] > 0:
		case full || !a.top(p.up):
			gone[p] = true
		}
	}
	for len(gone) > 0 {
		leaf := map[*account]bool{}
		for p := range gone {
			leaf[p] = true
		}
		for p := range gone {
			if up := a.procs[p.up]; up != nil && gone[up] {
				delete(leaf, up)
			}
		}
		if len(leaf) == 0 {
			leaf = gone // numbers that were used again: no order is right
		}
		for p := range leaf {
			a.fold(p)
			delete(gone, p)
		}
	}
}

// children returns what the reaped children of a process used elsewhere.
func (a *accounts) children(host int) (u unum.Usage) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.live(host); p != nil {
		return p.kids
	}
	return u
}

// live sweeps, and returns the account of a process that is there.
func (a *accounts) live(host int) *account {
	p := a.procs[host]
	if p == nil {
		return nil
	}
	a.sweep()
	if _, start, ok := a.look(host); !ok || start != p.start {
		return nil
	}
	return p
}

// hold says whether a wait of the process may have to be patched. Until the
// release the accounts of its children stay apart.
func (a *accounts) hold(parent int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.live(parent) == nil {
		return false
	}
	for _, p := range a.procs {
		if p.up == parent {
			a.held[parent]++
			return true
		}
	}
	return false
}

// of returns what a child that was waited for used elsewhere, with what it had
// reaped. Preconditions: its parent is held.
func (a *accounts) of(parent int, child unum.Pid) (u unum.Usage) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sweep()
	for _, p := range a.procs {
		if p.up == parent && p.world == child {
			u.Add(p.own)
			u.Add(p.kids)
		}
	}
	return u
}

func (a *accounts) release(parent int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.held[parent]--; a.held[parent] <= 0 {
		delete(a.held, parent)
	}
}

// take ends the account of a body that its agent has reaped.
func (a *accounts) take(host int) (u unum.Usage) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.procs[host] == nil {
		return u
	}
	a.sweep()
	if p := a.procs[host]; p != nil {
		u = p.kids
		delete(a.procs, host)
	}
	return u
}

func (a *accounts) empty() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.procs) == 0
}
