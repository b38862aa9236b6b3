package rexec

import (
	"sync"

	"unum"
	"unum/sys"
)

// whys remembers why processes run where they do, for `unum why`. Bounded: the
// oldest go first.
type whys struct {
	mu   sync.Mutex
	text map[unum.Pid]string
	ring [4096]unum.Pid
	next int
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

// add is set for a process known by its host number.
func (w *whys) add(why string, host int) {
	if pid, err := sys.WorldPid(host); err == nil {
		w.set(pid, why)
	}
}

func (w *whys) get(pid unum.Pid) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text[pid]
}
