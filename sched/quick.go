package sched

import (
	"path"

	"unum"
)

// Quick answers the common question cheaply: whether an exec stays where it is
// whatever else is true of the caller, so that its PID, session and terminal
// need not be read. ok false means that only Place can tell. r needs Path,
// Hint, Caller and Home, and Argv if NeedsArgv says so; Path is the same as
// Place gets.
func (s *Scheduler) Quick(v View, r Request) (d Decision, ok bool) {
	if reason, home := HomeOnly(r.Path, r.Argv...); home {
		d = Decision{Node: r.Home, Why: "stays home: " + reason}
		return d, r.Home == r.Caller
	}
	key := Command(r.Path, r.Argv)
	if reason, kept := s.kept.get(key); kept {
		d = Decision{Node: r.Home, Why: "stays home: " + *reason}
		return d, r.Home == r.Caller
	}
	switch r.Hint {
	case HintHere, string(r.Caller):
		return Decision{Node: r.Caller, Why: "UNUM_NODE=" + r.Hint}, true
	case "", HintAuto:
	default:
		return d, false
	}
	if drives(r.Path, r.Argv) {
		return Decision{Node: r.Caller, Why: "what it starts is placed one by one"}, true
	}
	h, known := s.hist.get(key)
	if !known || h.used >= s.cfg.Short || h.seen < 3 || h.skipped+1 >= sampleEvery {
		return d, false
	}
	for i := range v.Nodes {
		n := &v.Nodes[i]
		if n.ID == r.Caller && (n.State != unum.Up || s.refuses(n, h.rss) == nil) {
			h.skipped++
			return Decision{Node: r.Caller, Why: "short"}, true
		}
	}
	return d, false
}

// NeedsArgv says whether the arguments of a program matter for a decision: it
// is an interpreter, whose script counts, or does several things by name.
func NeedsArgv(file string) bool {
	base := path.Base(file)
	switch base {
	case "unum", "busybox", "toybox":
		return true
	}
	_, ok := interpreters[strip(base)]
	return ok
}
