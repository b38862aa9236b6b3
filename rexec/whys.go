package rexec

import (
	"sync"

	"unum"
)

// whys remembers why processes run where they do, for `unum why`. Bounded: the
// oldest go first.
type whys struct {
	mu     sync.Mutex
	text   map[unum.Pid]string
	stayed map[int]string // by host PID, of execs that stayed as a matter of course
	ring   [4096]unum.Pid
	next   int
}

func (w *whys) set(pid unum.Pid, why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.text == nil {
		w.text = map[unum.Pid]string{}
	}
	if _, ok := w.text[pid]; !ok {
		if old := w.ring[w.next]; old != 0 {
			delete(w.text, old)
		}
		w.ring[w.next] = pid
		w.next = (w.next + 1) % len(w.ring)
	}
	w.text[pid] = why
}

// add is set for a process known by its host number, of which nothing more is
// read: this lies on the way of every exec that stays.
func (w *whys) add(why string, host int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.stayed) >= len(w.ring) {
		clear(w.stayed)
	}
	if w.stayed == nil {
		w.stayed = map[int]string{}
	}
	w.stayed[host] = why
}

func (w *whys) get(pid unum.Pid, host int) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t := w.text[pid]; t != "" {
		return t
	}
	return w.stayed[host]
}
