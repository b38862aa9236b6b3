package deaths

import (
	"crypto/md5"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"unum/unumtest"
)

// killed sends kills at random moments until the job has ended, and returns
// how many there were. Of several services, with a space between them, each is
// killed in turn, at once.
func (j *job) killed(nodes []int, services string, least, most time.Duration) int {
	n := 0
	for {
		wait := least + rand.N(most-least)
		select {
		case <-j.done:
			return n
		case <-time.After(wait):
			for _, i := range nodes {
				for _, service := range strings.Fields(services) {
					if j.c.killService(i, service) && j.runs() {
						n++
					}
				}
			}
			// Some die again before they are up, but not all: nothing would go on.
			if strings.Contains(services, "daemon") && rand.N(3) > 0 {
				for _, i := range nodes {
					j.c.awaitBeat(i, j.done)
				}
			}
		}
	}
}

// runs says whether the job has not ended.
func (j *job) runs() bool {
	select {
	case <-j.done:
		return false
	default:
		return true
	}
}

// size is how many bytes go through a pipeline.
func size() int {
	if unumtest.Long() {
		return 1 << 30
	}
	return 64 << 20
}

// sum is the MD5 of what `yes` writes.
func sum(n int) string {
	h := md5.New()
	line := []byte("unum: e pluribus unum, lost and doubled nothing\n")
	for ; n >= len(line); n -= len(line) {
		h.Write(line)
	}
	h.Write(line[:n])
	return fmt.Sprintf("%x  -", h.Sum(nil))
}

const source = `yes 'unum: e pluribus unum, lost and doubled nothing' | head -c $N`

// The daemons of home, of the guest, and of both die in the middle of
// producer | placed | consumer, again and again.
func TestDaemonPipeline(t *testing.T) {
	c := start(t, 3)
	n := size()
	for _, x := range []struct {
		name  string
		nodes []int
	}{{"home", []int{0}}, {"guest", []int{1}}, {"both", []int{0, 1}}} {
		t.Run(x.name, func(t *testing.T) {
			c.t = t
			// On a quick machine all is through before the first kill: more, then.
			for n, kills := n, 0; kills == 0; n *= 4 {
				j := c.run(source+` | UNUM_NODE=n2 cat | md5sum; echo ${PIPESTATUS[*]}`, fmt.Sprintf("N=%d", n))
				kills = j.killed(x.nodes, "daemon", 100*time.Millisecond, 800*time.Millisecond)
				j.want(time.Second, 0, sum(n)+"\n141 0 0 0")
				t.Logf("%d kills in %d MiB", kills, n>>20)
				c.awaitBack()
			}
		})
	}
}
