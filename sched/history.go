package sched

import (
	"container/list"
	"time"
)

// history is what is known of a command.
type history struct {
	used    time.Duration // smoothed processor time, or wall time where that is not known
	rss     uint64        // the largest seen, slowly forgotten
	seen    int
	skipped int // runs since the last that was observed
}

// Learn adds one run to the history of a command, which is named as Command
// names it.
func (s *Scheduler) Learn(command string, o Outcome) {
	d := o.CPU
	if d == 0 {
		d = o.Wall
	}
	h, ok := s.hist.get(command)
	if !ok {
		s.hist.put(command, history{used: d, rss: o.MaxRSS, seen: 1})
		return
	}
	h.used += (d - h.used) * 3 / 10
	h.rss -= h.rss / 16
	h.rss = max(h.rss, o.MaxRSS)
	h.seen++
}

// need returns the memory that a command is expected to want, in bytes.
func (s *Scheduler) need(command string) uint64 {
	if h, ok := s.hist.get(command); ok {
		return h.rss
	}
	return 0
}

// table is a map that holds at most max entries and forgets the one that was
// not looked at for the longest time.
type table[V any] struct {
	max   int
	m     map[string]*list.Element
	order *list.List // front: looked at last
}

type entry[V any] struct {
	key string
	val V
}

func newTable[V any](max int) *table[V] {
	return &table[V]{max: max, m: map[string]*list.Element{}, order: list.New()}
}

// get returns a pointer into the table, valid until the next put.
func (t *table[V]) get(key string) (*V, bool) {
	e, ok := t.m[key]
	if !ok {
		return nil, false
	}
	t.order.MoveToFront(e)
	return &e.Value.(*entry[V]).val, true
}

func (t *table[V]) put(key string, v V) {
	if e, ok := t.m[key]; ok {
		e.Value.(*entry[V]).val = v
		t.order.MoveToFront(e)
		return
	}
	if len(t.m) >= t.max {
		old := t.order.Back()
		delete(t.m, old.Value.(*entry[V]).key)
		t.order.Remove(old)
	}
	t.m[key] = t.order.PushFront(&entry[V]{key, v})
}

func (t *table[V]) all() map[string]V {
	m := make(map[string]V, len(t.m))
	for k, e := range t.m {
		m[k] = e.Value.(*entry[V]).val
	}
	return m
}
