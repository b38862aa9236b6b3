package wire

import (
	"errors"
	"testing"
	"time"

	"unum"
)

// One-way messages wait in the socket for Hear once there was one; before, and
// when the quiet connection breaks, they come over the control connection.
func TestQuiet(t *testing.T) {
	c := newCluster(t)
	a, b := c.node("a"), c.node("b")
	got := make(chan string, 1000)
	b.HandleTell("beat", func(from unum.NodeID, msg []byte) { got <- string(from) + string(msg) })
	tell := func(s string) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); !a.Tell("b", "beat", []byte(s)); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("never connected")
			}
		}
	}
	quiet := func() *quiet {
		r := a.remote("b")
		r.mu.Lock()
		defer r.mu.Unlock()
		r.hushedAt = time.Time{}
		return r.quiet
	}
	stands := func() {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); quiet() == nil; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("never quiet")
			}
			tell("!")
		}
		for end := time.After(20 * time.Millisecond); ; {
			select {
			case <-got:
				continue
			case <-end:
			}
			break
		}
		b.Hear()
		for len(got) > 0 {
			<-got
		}
	}
	tell("1") // nobody hears: the control connection
	if s := <-got; s != "a1" {
		t.Errorf("got %q", s)
	}
	b.Hear()
	stands()
	for _, s := range []string{"2", "3"} {
		tell(s)
	}
	time.Sleep(20 * time.Millisecond)
	if len(got) != 0 {
		t.Errorf("%q came without Hear", <-got)
	}
	b.Hear()
	if len(got) != 2 || <-got != "a2" || <-got != "a3" {
		t.Error("Hear did not bring what was told")
	}
	// Large ones, in pieces.
	big := string(make([]byte, 100<<10))
	tell(big)
	for n := 0; len(got) == 0; n++ {
		if n > 1000 {
			t.Fatal("a large message does not arrive")
		}
		b.Hear()
	}
	if s := <-got; s != "a"+big {
		t.Errorf("%d bytes of a large message", len(s))
	}
	// It breaks at the hearing end, and is made again.
	r := b.remote("a")
	r.unheard(r.heard)
	for broken := quiet(); quiet() == broken; time.Sleep(time.Millisecond) {
		tell("4") // the first may be lost
	}
	stands()
	tell("5")
	time.Sleep(20 * time.Millisecond)
	b.Hear()
	if s := <-got; s != "a5" {
		t.Errorf("got %q", s)
	}
	// A stuck one is given up.
	var err error
	for q := quiet(); err == nil; {
		err = q.write("beat", make([]byte, 60<<10))
	}
	if errors.Is(err, unum.ErrLinkLost) {
		t.Error(err)
	}
	// The life of the peer is over.
	stands()
	a.Lost("b", 0)
	if q := quiet(); q != nil {
		t.Error("a quiet connection to a lost node")
	}
	a.Close()
	b.Close()
}
