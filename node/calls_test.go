package node

import (
	"strconv"
	"testing"

	"unum"
)

// The latest are known, and no more than two generations are kept.
func TestCommands(t *testing.T) {
	var c commands
	const all = 5*generation + 7
	for i := range all {
		c.note(unum.Pid(i), strconv.Itoa(i))
		if len(c.last)+len(c.old) > 2*generation {
			t.Fatalf("%d and %d are kept", len(c.last), len(c.old))
		}
	}
	for i := all - generation; i < all; i++ {
		if s, ok := c.of(unum.Pid(i)); !ok || s != strconv.Itoa(i) {
			t.Fatalf("%d: %q %v", i, s, ok)
		}
	}
	if s, ok := c.of(7); ok {
		t.Errorf("an old one: %q", s)
	}
	c.note(all-1, "again")
	if s, _ := c.of(all - 1); s != "again" {
		t.Errorf("not the latest: %q", s)
	}
}
