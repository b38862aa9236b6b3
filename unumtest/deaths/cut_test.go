package deaths

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// lose makes the network lose all packets of a node for a while. Its link
// stays up, so that no kernel is told.
func (c *cluster) lose(i int, d time.Duration) {
	if err := c.SetCarried(i, false); err != nil {
		c.t.Error(err)
	}
	time.Sleep(d)
	if err := c.SetCarried(i, true); err != nil {
		c.t.Error(err)
	}
}

// spell is how long a cut lasts.
type spell struct{ least, most time.Duration }

func (s spell) length() time.Duration {
	if s.most == s.least {
		return s.least
	}
	return s.least + rand.N(s.most-s.least)
}

// cuts has a node's packets lost for moments, again and again, until over is
// closed. It returns how often.
func (c *cluster) cuts(i int, s spell, over <-chan struct{}) (n int) {
	for {
		select {
		case <-over:
			return n
		case <-time.After(200*time.Millisecond + rand.N(500*time.Millisecond)):
		}
		c.lose(i, s.length())
		select {
		case <-over: // perhaps before this one
		default:
			n++
		}
	}
}

// Cuts that one observer sees, and which are shorter than the lease; and those
// that nobody may take for a death, though there are two observers.
var spells = []struct {
	name  string
	nodes int
	spell spell
}{
	{"two nodes, up to a second", 2, spell{50 * time.Millisecond, time.Second}},
	{"three nodes, 150 ms", 3, spell{150 * time.Millisecond, 150 * time.Millisecond}},
}

// The network loses packets for moments, again and again, and a pipeline loses
// nothing.
func TestPacketsAreLostInPipeline(t *testing.T) {
	for _, x := range spells {
		t.Run(x.name, func(t *testing.T) {
			c := start(t, x.nodes)
			for n, cuts := size(), 0; cuts == 0; n *= 4 {
				j := c.run(source+` | UNUM_NODE=n2 cat | md5sum; echo ${PIPESTATUS[*]}`, fmt.Sprintf("N=%d", n))
				cuts = c.cuts(1, x.spell, j.done)
				j.want(time.Second, 0, sum(n)+"\n141 0 0 0")
				t.Logf("%d cuts in %d MiB", cuts, n>>20)
				c.awaitBack()
			}
		})
	}
}

// And a build makes what it makes natively.
func TestPacketsAreLostInBuild(t *testing.T) {
	for _, x := range spells {
		t.Run(x.name, func(t *testing.T) {
			c := start(t, x.nodes)
			project(t, c.dir, 15)
			for more, cuts := 1, 0; cuts == 0; more *= 4 {
				cuts = c.under(rebuild("elsewhere", 15), more, time.Duration(more)*200*time.Second, "same 0", func(j *job) int {
					return c.cuts(1, x.spell, j.done)
				})
				t.Logf("%d cuts in %d builds", cuts, more)
			}
		})
	}
}

// Longer ones may cost the node: then its bodies are killed, and that is told.
// Nothing hangs, nothing is half done.
func TestPacketsAreLostForLonger(t *testing.T) {
	c := start(t, 3)
	whole, killed := 0, 0
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end) || whole+killed == 0; {
		j := c.run(`echo $(seq 20000) | UNUM_NODE=n2 sh -c 'sleep 0.3; cat' | md5sum; echo ${PIPESTATUS[*]}
			UNUM_NODE=n2 sh -c 'sleep 0.3; exit 5'; echo $?`)
		c.cuts(1, spell{50 * time.Millisecond, time.Second}, j.done)
		j.ended(known)
		lines := strings.Split(strings.TrimSpace(j.out.String()), "\n")
		if len(lines) != 3 {
			t.Fatalf("%q %s", lines, j.err.String())
		}
		switch lines[1] {
		case "0 0 0", "0 137 0", "141 137 0":
		default:
			t.Fatalf("%q", lines)
		}
		if lines[1] == "0 0 0" && lines[0] != "40c463c464ab1ebcc3a87a2d870de830  -" {
			t.Fatalf("%q", lines)
		}
		switch lines[2] {
		case "5":
			whole++
		case "137":
			killed++
		default:
			t.Fatalf("%q", lines)
		}
		c.awaitBack()
	}
	t.Logf("%d whole, %d killed", whole, killed)
}

// A shell on a terminal, whose jobs are placed and stopped and continued, while
// packets are lost.
func TestPacketsAreLostAtTerminal(t *testing.T) {
	for _, x := range spells {
		t.Run(x.name, func(t *testing.T) {
			c := start(t, x.nodes)
			term := c.terminal()
			over, cuts := make(chan struct{}), make(chan int)
			go func() { cuts <- c.cuts(1, x.spell, over) }()
			for i, end := 0, time.Now().Add(10*time.Second); time.Now().Before(end); i++ {
				term.round(i)
			}
			close(over)
			n := <-cuts
			term.leave()
			t.Logf("%d cuts", n)
			if n == 0 {
				t.Error("nothing was cut") // in ten seconds
			}
		})
	}
}

// Two nodes do not reach each other, and a third one reaches both: nobody is
// lost, and what they have together waits.
func TestTwoNodesAreApart(t *testing.T) {
	c := start(t, 3)
	apart := func(yes bool) {
		for _, i := range []int{1, 2} {
			if err := c.SetApart(i, yes); err != nil {
				t.Fatal(err)
			}
		}
	}
	n := 4 << 20
	j := c.run(`UNUM_NODE=n2 bash -c '(while [ ! -e $D/go ]; do sleep 0.02; done; `+
		strings.ReplaceAll(source, "'", `"`)+`) | UNUM_NODE=n3 cat | md5sum; echo ${PIPESTATUS[*]}'; echo $?`, fmt.Sprintf("N=%d", n))
	c.await("cat on n3", 1, func() []int { return c.find(2, "cat") })
	apart(true)
	os.WriteFile(filepath.Join(c.dir, "go"), nil, 0o600)
	// n2 suspects n3 after 300 ms, and would have it declared lost after 500.
	select {
	case <-j.done:
		t.Errorf("it did not wait: %q", j.out.String())
	case <-time.After(4 * time.Second):
	}
	if c.down("n2") || c.down("n3") {
		t.Error("a node that n1 reaches is declared lost")
	}
	apart(false)
	j.want(patience, 0, sum(n)+"\n0 0 0\n0")
}
