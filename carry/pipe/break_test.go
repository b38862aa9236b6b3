package pipe

import (
	"context"
	"math/rand/v2"
	"os/exec"
	"testing"
	"time"
)

// carried runs a stream through a placed cat while upset is called again and
// again, and checks every byte.
func carried(t *testing.T, dir byte, upset func(r *rig, p *placed)) {
	t.Helper()
	r := newRig(t)
	pr, pw := userPipe(t)
	size := sizeOf(128)
	user := pr
	if dir == 'w' {
		user = pw
	}
	p := r.carry(dir, user, 0, false)
	cmd := exec.Command("cat")
	type result struct {
		sum string
		n   int64
	}
	results := make(chan result, 1)
	ended := make(chan error, 1)
	if dir == 'r' {
		write(pw, noise(size))
		out, _ := cmd.StdoutPipe()
		p.start(cmd)
		go func() {
			sum, n := digest(out)
			results <- result{sum, n}
		}()
	} else {
		cmd.Stdin = noise(size)
		p.start(cmd)
		go func() { ended <- cmd.Wait() }()
		go func() {
			sum, n := digest(pr)
			results <- result{sum, n}
		}()
	}
	var got result
	over := false
	timeout := time.After(60 * time.Second)
	for !over {
		select {
		case got = <-results:
			over = true
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
			p.ended()
			got = <-results
			over = true
		case <-time.After(time.Duration(rand.IntN(2500)) * time.Microsecond):
			upset(r, p)
		case <-timeout:
			t.Fatal("it hangs")
		}
	}
	if dir == 'r' {
		if err := p.wait(cmd); err != nil {
			t.Error(err)
		}
	}
	if want, _ := digest(noise(size)); got.n != size || got.sum != want {
		t.Errorf("%d bytes with digest %s, want %d with %s", got.n, got.sum, size, want)
	}
}

func TestLinkBreaks(t *testing.T) {
	for _, dir := range []byte{'r', 'w'} {
		t.Run(string(dir), func(t *testing.T) {
			n := 0
			carried(t, dir, func(r *rig, p *placed) { n++; r.net.Cut() })
			t.Logf("%d breaks", n)
		})
	}
}

func TestRestarts(t *testing.T) {
	for _, dir := range []byte{'r', 'w'} {
		t.Run(string(dir), func(t *testing.T) {
			n := [2]int{}
			carried(t, dir, func(r *rig, p *placed) {
				i := rand.IntN(2)
				n[i]++
				p.restart(i)
			})
			t.Logf("%d restarts at home, %d at the guest", n[0], n[1])
		})
	}
}

// Every stop of a body flushes, and takes back what it has not read.
func TestFlushes(t *testing.T) {
	for _, dir := range []byte{'r', 'w'} {
		t.Run(string(dir), func(t *testing.T) {
			n := 0
			carried(t, dir, func(r *rig, p *placed) {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				if err := p.guest.Flush(ctx, false); err != nil {
					t.Error(err)
				}
				n++
			})
			t.Logf("%d flushes", n)
		})
	}
}
