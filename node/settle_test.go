package node

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"unum"
)

// rosters is a roster whose store and live list the test sets.
type rosters struct {
	roster
	store, list []unum.NodeInfo
	reads       int
}

func newRosters() *rosters {
	x := &rosters{roster: roster{self: "n1", until: time.Now().Add(settleFor), news: make(chan struct{})}}
	x.live = func() []unum.NodeInfo { return x.list }
	x.read = func(context.Context) ([]unum.NodeInfo, error) {
		x.reads++
		return x.store, nil
	}
	return x
}

func infos(states ...unum.NodeState) (out []unum.NodeInfo) {
	for i, s := range states {
		out = append(out, unum.NodeInfo{ID: unum.NodeID([]string{"n1", "n2", "n3"}[i]), State: s})
	}
	return out
}

// What has to be waited for, by the list as it is.
func TestDecidable(t *testing.T) {
	for _, c := range []struct {
		hint  string
		nodes []unum.NodeInfo
		want  bool
	}{
		{"", nil, true},
		{"auto", nil, true},
		{"n2", nil, false},
		{"n2", infos(unum.Up), false},
		{"n2", infos(unum.Up, unum.Joining), false},
		{"n2", infos(unum.Up, unum.Up), true},
		{"n2", infos(unum.Up, unum.Down), true},
		{"n2", infos(unum.Up, unum.Suspect), true},
		{"elsewhere", infos(unum.Up), true},
		{"elsewhere", infos(unum.Up, unum.Joining), false},
		{"elsewhere", infos(unum.Up, unum.Joining, unum.Up), true},
		{"elsewhere", infos(unum.Up, unum.Down), true},
	} {
		if got := decidable(c.nodes, "n1", c.hint); got != c.want {
			t.Errorf("%q with %v: %v", c.hint, c.nodes, got)
		}
	}
}

// A daemon that has just started waits for a node that is on its way, asks the
// store about one that it does not know, and never waits for long.
func TestSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newRosters()
		if x.settled("n2") {
			t.Error("n2 is not known yet")
		}
		// Listed on joining, not up before a second has passed.
		x.joined(infos(unum.Up, unum.Joining))
		if x.settled("n2") {
			t.Error("n2 is not up yet")
		}
		begin := time.Now()
		go func() {
			time.Sleep(time.Second)
			x.list = infos(unum.Up, unum.Up)
			x.changed()
		}()
		if !x.settle(t.Context(), "n2") || time.Since(begin) != time.Second {
			t.Errorf("n2 came after %v", time.Since(begin))
		}

		// The store has a third, the list has not.
		begin = time.Now()
		x.store = infos(unum.Up, unum.Up, unum.Up)
		go func() {
			time.Sleep(time.Second)
			x.list = x.store
			x.changed()
		}()
		if !x.settle(t.Context(), "n3") || time.Since(begin) != time.Second || x.reads != 1 {
			t.Errorf("n3 came after %v, and %d questions", time.Since(begin), x.reads)
		}

		// Nobody has a fourth: that is known at once.
		begin = time.Now()
		if !x.settle(t.Context(), "n4") || time.Since(begin) != 0 {
			t.Errorf("that there is no n4 was known after %v", time.Since(begin))
		}

		// A node that does not come up, and who is asked later.
		x.list = infos(unum.Up, unum.Joining)
		x.changed()
		if x.settle(t.Context(), "n2") || time.Now() != x.until {
			t.Errorf("given up %v after the start", settleFor-time.Until(x.until))
		}
		time.Sleep(1)
		if !x.settled("n2") || !x.settled("n5") {
			t.Error("a daemon that is not new any more believes its list")
		}
	})
}
