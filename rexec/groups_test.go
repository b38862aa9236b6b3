package rexec

import (
	"context"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
	"unum/deputy"
	"unum/sys"
)

// The news of an end waits for the group's signal, and for no longer than the
// node that sends it can be expected to need.
func TestGroupsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroups()
		begin := time.Now()
		go func() {
			time.Sleep(20 * time.Millisecond)
			g.add(6)
			time.Sleep(20 * time.Millisecond)
			g.add(7)
		}()
		g.wait(context.Background(), 7)
		if d := time.Since(begin); d != 40*time.Millisecond {
			t.Errorf("waited %v for the seventh", d)
		}
		g.wait(context.Background(), 6)
		g.wait(context.Background(), 0)
		if d := time.Since(begin); d != 40*time.Millisecond {
			t.Errorf("waited for what was there: %v", d)
		}
		g.wait(context.Background(), 8)
		if d := time.Since(begin); d != 40*time.Millisecond+groupWait {
			t.Errorf("waited %v for what never came", d)
		}
	})
}

// A body is given a group's signal once, whichever way is first, and whichever
// daemon.
func TestGroupIsClaimedOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "signals")
	l, err := openLedger(file)
	if err != nil {
		t.Fatal(err)
	}
	b := &body{place: carry.Placement{ID: 50, Pid: 70000}}
	g := &Guests{groups: newGroups(), ledger: l}
	g.bodies = map[unum.Pid]*body{70000: b}
	if !g.ClaimGroup(9, 70000) || g.ClaimGroup(9, 70000) || g.ClaimGroup(9, 70001) {
		t.Error("a signal is to be claimed once, for a body")
	}
	if b.after != 9 || g.GroupKnown(9) {
		t.Error("it is not done yet")
	}
	g.GroupDone(9, []unum.Pid{70000}, true)
	if !g.GroupKnown(9) {
		t.Error("it is done")
	}
	next, err := openLedger(file)
	if err != nil {
		t.Fatal(err)
	}
	if ids := next.of(50); len(ids) != 1 || ids[0] != 9 {
		t.Errorf("the next daemon finds %v for the body", ids)
	}
	if ids := next.groups(); len(ids) != 1 || ids[0] != 9 {
		t.Errorf("the next daemon finds %v for the node", ids)
	}
}

func TestMark(t *testing.T) {
	info := sys.MakeSiginfo(unix.SIGUSR1, -1, 70000, 1000)
	m := deputy.MarkGroup(info, 1<<63|5)
	if deputy.GroupOf(m) != 1<<63|5 || m.Pid() != 70000 || m.Uid() != 1000 || m.Signo() != unix.SIGUSR1 {
		t.Errorf("marked: %v", m)
	}
	if deputy.GroupOf(info) != 0 {
		t.Error("a signal that is not marked is a group's")
	}
}
