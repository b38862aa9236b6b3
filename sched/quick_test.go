package sched

import (
	"testing"
	"time"

	"unum"
)

// Quick agrees with Place wherever it answers, and answers for what is run
// most.
func TestQuick(t *testing.T) {
	s, v := New(Config{}), view(2, 2)
	for range 5 {
		s.Learn("/bin/true", Outcome{CPU: time.Millisecond})
		s.Learn("/usr/lib/cc1", Outcome{CPU: time.Second})
	}
	s.Forbid("python3 srv.py", "it connected to 127.0.0.1")
	for _, c := range []struct {
		path, hint string
		argv       []string
		want       bool
	}{
		{path: "/bin/true", want: true},
		{path: "/bin/true", hint: HintAuto, want: true},
		{path: "/bin/true", hint: HintHere, want: true},
		{path: "/bin/true", hint: "n1", want: true},
		{path: "/bin/true", hint: "n2"},
		{path: "/bin/true", hint: HintElsewhere},
		{path: "/bin/new"},
		{path: "/usr/lib/cc1"},
		{path: "/usr/bin/make", argv: []string{"make", "-j6"}, want: true},
		{path: "/bin/sh", argv: []string{"sh", "-c", "for d in a b; do (cd $d && make all); done"}, want: true},
		{path: "/bin/sh", argv: []string{"sh", "-c", "cc -o make-up make-up.c"}},
		{path: "/usr/bin/ps", hint: HintElsewhere, want: true},
		{path: "/usr/bin/python3", argv: []string{"python3", "srv.py"}, hint: "n2", want: true},
		{path: "/usr/bin/python3", argv: []string{"python3", "x.py"}, hint: "n2"},
	} {
		r := Request{Path: c.path, Argv: c.argv, Hint: c.hint, Caller: "n1", Home: "n1"}
		q, ok := s.Quick(v, r)
		if ok != c.want {
			t.Errorf("%s %v UNUM_NODE=%s: answers %v", c.path, c.argv, c.hint, ok)
		}
		if p := s.Place(0, v, r); ok && (p.Node != q.Node || p.Why != q.Why) {
			t.Errorf("%s: quick %+v, place %+v", c.path, q, p)
		}
	}
	// Every so often a known command is looked at again.
	asked := 0
	for range 10 * sampleEvery {
		r := Request{Path: "/bin/true", Caller: "n1", Home: "n1"}
		if _, ok := s.Quick(v, r); !ok {
			asked++
			s.Place(0, v, r)
		}
	}
	if asked < 8 || asked > 12 {
		t.Errorf("observed %d of %d", asked, 10*sampleEvery)
	}
	v.Nodes[0].Load.MemFree = 1
	if _, ok := s.Quick(v, Request{Path: "/bin/true", Caller: "n1", Home: "n1"}); ok {
		t.Error("a node without memory keeps what comes")
	}
	v.Nodes[0].State = unum.Draining
	if _, ok := s.Quick(v, Request{Path: "/bin/true", Caller: "n1", Home: "n1"}); !ok {
		t.Error("a draining node runs its own short commands")
	}
	if !NeedsArgv("/bin/sh") || !NeedsArgv("/usr/bin/python3.11") || NeedsArgv("/bin/true") {
		t.Error("NeedsArgv")
	}
}

func BenchmarkQuick(b *testing.B) {
	s, v := New(Config{}), view(2, 2, 2)
	for range 5 {
		s.Learn("/bin/true", Outcome{CPU: time.Millisecond})
	}
	for b.Loop() {
		s.Quick(v, Request{Path: "/bin/true", Caller: "n1", Home: "n1"})
	}
}
