package node

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"unum"
	"unum/ctl"
)

func TestChain(t *testing.T) {
	for name, c := range map[string]struct {
		parts map[unum.NodeID]*whyPart
		want  ctl.Why
	}{
		"at home": {
			map[unum.NodeID]*whyPart{"n2": {Runs: true, Command: "sh", Reasons: []string{"a"}}},
			ctl.Why{Node: "n2", Command: "sh", Reasons: []string{"a"}},
		},
		"placed twice": {
			map[unum.NodeID]*whyPart{
				"n1": {Runs: true, Command: "cc", Reasons: []string{"c"}},
				"n2": {Next: "n3", Reasons: []string{"a"}},
				"n3": {Next: "n1", Reasons: []string{"b"}},
			},
			ctl.Why{Node: "n1", Command: "cc", Reasons: []string{"a", "b", "c"}},
		},
		"the node where it runs did not answer": {
			map[unum.NodeID]*whyPart{"n2": {Next: "n3", Reasons: []string{"a"}}},
			ctl.Why{Node: "n3", Reasons: []string{"a"}},
		},
		"home did not answer": {
			map[unum.NodeID]*whyPart{"n3": {Runs: true, Command: "cc", Reasons: []string{"b"}}},
			ctl.Why{Node: "n3", Command: "cc", Reasons: []string{"b"}},
		},
		"ended": {
			map[unum.NodeID]*whyPart{"n2": {Reasons: []string{"a"}}},
			ctl.Why{Node: "n2", Reasons: []string{"a"}},
		},
		"a circle, as a moment may show it": {
			map[unum.NodeID]*whyPart{"n2": {Next: "n3"}, "n3": {Next: "n2"}},
			ctl.Why{Node: "n2"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.want.Pid, c.want.Home = 7, "n2"
			if d := cmp.Diff(&c.want, chain(7, "n2", c.parts)); d != "" {
				t.Error(d)
			}
		})
	}
}
