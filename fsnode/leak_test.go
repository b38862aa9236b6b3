package fsnode

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// A thousand carried descriptors leave nothing behind, in the daemon, the
// file server, the keeper and the state directory.
func TestNothingIsLeft(t *testing.T) {
	p := newPair(t)
	f := temp(t, os.O_RDWR, "")
	r, _ := pipe(t)
	round := func(n int) {
		for i := range n {
			g := f
			if i%2 == 0 {
				g = r
			}
			c := p.carry(g)
			c.started()
			c.ended()
		}
	}
	count := func() [4]int {
		runtime.GC()
		var own, server, kept int
		if d, err := os.ReadDir("/proc/self/fd"); err == nil {
			own = len(d)
		}
		if d, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.fsproc.Process.Pid)); err == nil {
			server = len(d)
		}
		p.keep.mu.Lock()
		kept = len(p.keep.m)
		p.keep.mu.Unlock()
		return [4]int{own, server, kept, runtime.NumGoroutine()}
	}
	round(50)
	before := count()
	round(500)
	// What was on its way out when it was counted before is no leak.
	waitFor(t, func() bool {
		after := count()
		for i := range after {
			if after[i] > before[i] {
				return false
			}
		}
		return true
	})
	if left, _ := filepath.Glob(filepath.Join(p.dir, "file", "*")); len(left) != 0 {
		t.Errorf("left in the state directory: %v", left)
	}
	tab, err := openTable(p.mount.Memory)
	if err != nil {
		t.Fatal(err)
	}
	defer tab.close()
	for i := range tab.recs {
		if tab.recs[i].Kind != recFree {
			t.Errorf("record %d is in use: %+v", i, tab.recs[i])
		}
	}
	for _, u := range tab.head.Unanswered {
		if u.Unique != 0 {
			t.Errorf("request %d was never answered", u.Unique)
		}
	}
}
