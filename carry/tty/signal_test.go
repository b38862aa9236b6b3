package tty

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
)

// One key is one press for all guests of a terminal, whoever reports it first;
// the reports of the others are its echoes, unless they come too late.
func TestPressIsReportedOnce(t *testing.T) {
	hs := &Homes{presses: map[press]*keypress{}}
	guest := func(node unum.NodeID, ids ...uint64) *home {
		h := &home{key: homeKey{100, 5, node}, ends: map[*HomeEnd]struct{}{}}
		for _, id := range ids {
			h.ends[&HomeEnd{h: h, pl: carry.Placement{ID: id, Pgid: 7, Sid: 100}, running: true, ctty: true}] = struct{}{}
		}
		return h
	}
	all := []*home{guest("n2", 1, 2), guest("n3", 3)}
	now := time.Now()
	say := func(id uint64, want bool) {
		t.Helper()
		if got := hs.report(all, carry.Placement{ID: id, Pgid: 7, Sid: 100}, unix.SIGINT, now); got != want {
			t.Errorf("the report of %d is a new press: %v", id, got)
		}
	}
	say(3, true)
	say(1, false)
	say(3, true) // pressed again, and the second has not reported yet
	say(2, false)
	say(1, false)
	say(2, true) // a third time
	now = now.Add(2 * keypressTime)
	say(1, true)
}
