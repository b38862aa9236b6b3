package sched

import (
	"slices"

	"fmt"
	"time"

	"unum"
)

// sampleEvery says how often a well-known short command is observed again.
const sampleEvery = 32

// exact is the number of candidates up to which all are compared. Beyond it
// four are drawn: with many schedulers deciding by the same reports, comparing
// all would send everybody to the same node.
const exact = 8

// cand is a node that could take the process.
type cand struct {
	info *unum.NodeInfo
	est  float64 // runnable tasks, as far as this scheduler can know
}

// crowd returns the runnable tasks for each processor if extra more came.
func (c *cand) crowd(extra float64) float64 {
	return (max(c.est, 0) + extra) / cpus(c.info)
}

// slow returns by how much a task is slowed down there: at least 1.
func (c *cand) slow(extra float64) float64 { return max(1, c.crowd(extra)) }

func cpus(n *unum.NodeInfo) float64 {
	if n.Load.CPUs <= 0 {
		return 1
	}
	return n.Load.CPUs
}

// auto decides by load and history.
func (s *Scheduler) auto(now int64, v View, r Request, key string) Decision {
	if j, ok := s.live[r.Pid]; ok {
		// Another program in the same task: it must not be crowded by itself.
		s.end(now, r.Pid, j)
	}
	h, known := s.hist.get(key)
	need := s.need(key)
	here := s.find(now, v, r.Caller)
	if here == nil {
		return Decision{Node: r.Caller, Why: "its node is not in the membership"}
	}
	d := s.cfg.Unknown
	if known {
		d = h.used
	}
	// What a job starts and waits for is no task more, here; nor is a guest's.
	within := r.Parent != r.Pid && s.waiter(r.Parent, r.Caller)
	extra := 1.0
	if r.Guest || within {
		extra = 0
	}
	stay := func(why string) Decision {
		dec := Decision{Node: r.Caller, Why: why, Observe: s.observe(h, known)}
		if dec.Observe && within {
			s.beginIn(now, r.Parent, r.Pid, key, here.slow(extra))
		} else if dec.Observe {
			s.begin(now, r.Pid, r.Caller, key, here.slow(1))
		}
		return dec
	}
	if drives(r.Path, r.Argv) {
		return Decision{Node: r.Caller, Why: "what it starts is placed one by one"}
	}
	full := here.info.State == unum.Up && s.refuses(here.info, need) != nil
	if !full {
		if known && d < s.cfg.Short {
			return stay("short")
		}
		if here.crowd(extra) <= 1 {
			return stay("there is room here")
		}
		if !known && r.Interactive && here.crowd(1) <= 2 {
			return stay("on a terminal, and not seen before")
		}
	}
	cs := s.others(now, v, r, need)
	if len(cs) == 0 {
		return stay("no other node takes processes")
	}
	best := s.least(cs)
	if full {
		s.begin(now, r.Pid, best.info.ID, key, best.slow(1))
		return Decision{Node: best.info.ID, Why: "no memory left here"}
	}
	lh, lb := here.slow(extra), best.slow(1)
	if (r.Guest || within) && lh < 2*lb {
		return stay("where its parent was placed")
	}
	// Reports are noisy, and the caller's parent counts here although it will
	// mostly wait: elsewhere must be better by half a task for what is known,
	// and by more than one for what is not.
	margin := 0.5
	if !known {
		margin = 1.25
	}
	if here.crowd(extra)-best.crowd(1) < margin/cpus(here.info) || cost(d, lb, s.cfg.Hop, lh) >= cost(d, lh, 0, 0) {
		return stay("here is as good as elsewhere")
	}
	s.begin(now, r.Pid, best.info.ID, key, best.slow(1))
	return Decision{Node: best.info.ID, Why: fmt.Sprintf("%.1f tasks for a processor here, %.1f there", here.crowd(0), best.crowd(0))}
}

// cost is the estimated time to completion, in nanoseconds.
func cost(d time.Duration, slow float64, hop time.Duration, hopSlow float64) float64 {
	return float64(d)*slow + float64(hop)*hopSlow
}

// observe says whether the end of a process that stays is worth knowing: the
// command is new, long, or was not looked at for a while.
func (s *Scheduler) observe(h *history, known bool) bool {
	if !known || h.seen < 3 || h.used >= s.cfg.Short {
		return true
	}
	h.skipped++
	if h.skipped >= sampleEvery {
		h.skipped = 0
		return true
	}
	return false
}

// find returns the node with its estimated load, or nil.
func (s *Scheduler) find(now int64, v View, id unum.NodeID) *cand {
	for i := range v.Nodes {
		if v.Nodes[i].ID == id {
			return &cand{info: &v.Nodes[i], est: s.see(now, &v.Nodes[i])}
		}
	}
	return nil
}

// others returns the nodes besides the caller's that would take a process which
// needs so much memory. The slice is reused by the next call.
func (s *Scheduler) others(now int64, v View, r Request, need uint64) []cand {
	cs := s.cands[:0]
	for i := range v.Nodes {
		n := &v.Nodes[i]
		if n.ID != r.Caller && !slices.Contains(r.Avoid, n.ID) && s.refuses(n, need) == nil {
			cs = append(cs, cand{info: n})
		}
	}
	s.cands = cs
	if len(cs) > exact {
		for i := range 4 {
			j := i + int(s.random()%uint64(len(cs)-i))
			cs[i], cs[j] = cs[j], cs[i]
		}
		cs = cs[:4]
	}
	for i := range cs {
		cs[i].est = s.see(now, cs[i].info)
	}
	return cs
}

// least returns the least crowded candidate; among equals, any.
func (s *Scheduler) least(cs []cand) *cand {
	first := int(s.random() % uint64(len(cs)))
	best := &cs[first]
	for i := 1; i < len(cs); i++ {
		c := &cs[(first+i)%len(cs)]
		if c.crowd(1) < best.crowd(1)-1e-9 {
			best = c
		}
	}
	return best
}

// random is xorshift64*: the same sequence in every run.
func (s *Scheduler) random() uint64 {
	s.rng ^= s.rng >> 12
	s.rng ^= s.rng << 25
	s.rng ^= s.rng >> 27
	return s.rng * 0x2545f4914f6cdd1d >> 11
}
