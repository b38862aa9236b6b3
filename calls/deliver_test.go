package calls

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"unum/sys"
)

// A parent comes before its children, whatever their numbers are; those whose
// parent is not of the group keep their place.
func TestParentsFirst(t *testing.T) {
	var g group
	for _, p := range [][2]int{{30, 20}, {31, 30}, {20, 10}, {10, 1}, {5, 99}, {21, 10}} {
		g = append(g, member{native, &sys.Task{Tgid: p[0], Ppid: p[1]}})
	}
	var got []int
	for _, m := range g.parentsFirst() {
		got = append(got, m.task.Tgid)
	}
	if d := cmp.Diff([]int{10, 5, 20, 21, 30, 31}, got); d != "" {
		t.Errorf("order (-want +got):\n%s", d)
	}
}

// /proc is not read at one instant, so parents may seem to go round.
func TestParentsFirstInACircle(t *testing.T) {
	g := group{{native, &sys.Task{Tgid: 2, Ppid: 3}}, {native, &sys.Task{Tgid: 3, Ppid: 2}}}
	if n := len(g.parentsFirst()); n != 2 {
		t.Errorf("%d members of 2", n)
	}
}

func TestDirect(t *testing.T) {
	for _, c := range []struct {
		sig       unix.Signal
		own, want bool
	}{
		{unix.SIGTERM, false, true}, {unix.SIGKILL, false, true}, {unix.SIGUSR1, true, true},
		{unix.SIGTSTP, false, false}, {unix.SIGTSTP, true, true}, {unix.SIGSTOP, true, true},
		{unix.SIGCONT, false, false}, {unix.SIGCONT, true, false},
	} {
		if got := direct(c.sig, c.own); got != c.want {
			t.Errorf("%v, own %v: %v", c.sig, c.own, got)
		}
	}
}
