package rexec

import (
	"context"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/seccomp"
	"unum/sys"
)

// A signal for a placed process is the deputy's at once, and the body's a moment
// later. Who has sent it from another node waits for that moment; and so does the
// news that a body has ended, on its way to a node whose bodies it may have
// signalled before: what its parent does then comes after the signal.

// handOnTime bounds what anybody waits for a signal to be handed on: longer
// takes a guest only that is being lost.
const handOnTime = time.Second

// all are the signals but the ring.
const all = 1<<63 - 1

func bit(sig unix.Signal) uint64 { return 1 << (sig - 1) }

// HandedOn returns when a signal that was sent to the deputy of a process of
// this node has been given to its body.
func (h *Homes) HandedOn(ctx context.Context, pid unum.Pid, sig unix.Signal) {
	h.mu.Lock()
	p := h.placed[pid]
	h.mu.Unlock()
	if p == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, handOnTime)
	defer cancel()
	p.handedOn(ctx, bit(sig))
}

// handedOnTo returns when all signals that were sent to deputies until now have
// been given to their bodies on a node.
func (h *Homes) handedOnTo(ctx context.Context, id unum.NodeID) {
	ps := h.placedOn(id)
	if len(ps) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, handOnTime)
	defer cancel()
	var wg sync.WaitGroup
	for _, p := range ps {
		if !p.idle() {
			wg.Go(func() { p.handedOn(ctx, all) })
		}
	}
	wg.Wait()
}

// idle says whether the deputy lives and has no signal.
func (p *placed) idle() bool {
	t := p.living()
	return t != nil && !p.holds(t, all)
}

// living reads the deputy's state; nil if it is dead.
func (p *placed) living() *sys.Task {
	t, err := sys.ReadTask(p.Host)
	if err != nil || t.State == 'Z' || t.State == 'X' {
		return nil
	}
	return t
}

// handedOn returns when none of these signals that were sent before stands
// pending in the deputy, or was taken by it and not yet passed on; for one that
// was killed, when its body was.
func (p *placed) handedOn(ctx context.Context, set uint64) {
	select {
	case <-p.ready: // until then the caller has it, which is held, and then the deputy
	case <-ctx.Done():
		return
	}
	if p.stub != nil && set != bit(unix.SIGKILL) {
		if p.overtaken(ctx, set) != nil {
			return
		}
		if p.living() != nil {
			return
		}
	}
	select {
	case <-p.over:
	case <-ctx.Done():
	}
}

// overtaken is handedOn for a deputy that lives, which may be stopped.
func (p *placed) overtaken(ctx context.Context, set uint64) error {
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 5*time.Millisecond) {
		t := p.living()
		if t == nil || !p.holds(t, set) {
			return nil
		}
		select {
		case <-time.After(pause):
		case <-p.done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// holds says whether the deputy, which lives, may have a signal of a set to hand
// on. One that it has taken it tells at once, so if none is pending and it
// waits, or stands stopped, it has none. What is pending while it stands stopped stays so, but
// for a SIGCONT.
func (p *placed) holds(t *sys.Task, set uint64) bool {
	switch {
	case t.SigPnd&set&bit(unix.SIGCONT) != 0:
		return true
	case t.State == 'T':
		return false
	case t.SigPnd&set != 0:
		return true
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(p.Host) + "/syscall")
	if err != nil {
		return false
	}
	nr, _, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	return nr == "running" || nr == strconv.Itoa(seccomp.PRIV)
}
