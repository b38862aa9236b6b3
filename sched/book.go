package sched

import (
	"math"
	"time"

	"unum"
)

// book is what this scheduler knows of a node beyond its last report.
//
// Invariant: at the time of the last report, the tasks that started and ended
// before it are in the report but for old; what came since is not in it at
// all and is counted by fresh. weight is fresh with each event multiplied by
// exp((t−last)/τ), so that the next report at T turns it into
// old = (old + weight) · exp(−(T−last)/τ).
type book struct {
	tau    time.Duration
	last   int64 // local time at which the last report was seen
	at     int64 // its Load.At
	old    float64
	fresh  float64
	weight float64
}

func (s *Scheduler) book(id unum.NodeID) *book {
	b := s.books[id]
	if b == nil {
		b = &book{tau: s.cfg.Tau}
		s.books[id] = b
	}
	return b
}

// see takes in a node's last report and returns the estimate of its runnable
// tasks now.
func (s *Scheduler) see(now int64, n *unum.NodeInfo) float64 {
	b := s.book(n.ID)
	if n.Load.At != b.at {
		b.old = (b.old + b.weight) * math.Exp(-b.ages(now))
		b.fresh, b.weight = 0, 0
		b.last, b.at = now, n.Load.At
		if math.Abs(b.old) < 1e-3 {
			b.old = 0
		}
	}
	return n.Load.Running + b.old + b.fresh
}

// add counts a task that started (+1) or ended (−1) now.
func (b *book) add(now int64, by float64) {
	b.fresh += by
	b.weight += by * math.Exp(b.ages(now))
}

// ages is the time since the last report in units of τ, bounded so that a
// node which reported long ago does not overflow.
func (b *book) ages(now int64) float64 {
	return min(max(float64(now-b.last)/float64(b.tau), 0), 30)
}
