package deaths

import (
	"fmt"
	"testing"
	"time"

	"unum/node"
	"unum/unumtest"
)

// Many placed execs in a row leave nothing in the daemons: descriptors and
// goroutines are as they were, and the heap does not grow with the number.
func TestDaemonsHoldNothing(t *testing.T) {
	c := start(t, 2)
	n := 300
	if unumtest.Long() {
		n = 2500
	}
	// What a daemon remembers of the last thousand execs grows until there were
	// so many.
	most := int64(2*n) * 512
	if unumtest.Long() {
		most = 256 << 10
	}
	round := func() (out []node.Debug) {
		c.run(fmt.Sprintf(`for i in $(seq %d); do x=$(echo $i | UNUM_NODE=n2 cat); [ "$x" = $i ] || echo $i: $x; done; echo done`, n)).
			want(time.Duration(n)*100*time.Millisecond, 0, "done")
		// Agents of sessions that are idle end after some seconds.
		var last string
		for range 30 {
			time.Sleep(500 * time.Millisecond)
			out = []node.Debug{c.debug(0), c.debug(1)}
			now := fmt.Sprint(out[0].Goroutines, out[0].FDs, out[1].Goroutines, out[1].FDs, out[1].Sessions)
			if now == last && out[0].Deputies+out[0].Runs+out[1].Bodies == 0 && out[1].Sessions == 0 {
				break
			}
			last = now
		}
		return out
	}
	round() // caches fill
	before := round()
	round()
	after := round()
	for i := range before {
		b, a := before[i], after[i]
		t.Logf("n%d: %+v, then %+v", i+1, b, a)
		if a.FDs > b.FDs || a.Goroutines > b.Goroutines || a.Stubs > b.Stubs {
			t.Errorf("n%d holds more than before", i+1)
		}
		if grown := int64(a.HeapInUse) - int64(b.HeapInUse); grown > most {
			t.Errorf("n%d: the heap grew by %d bytes in %d execs", i+1, grown, 2*n)
		}
	}
}
