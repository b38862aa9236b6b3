package pipe

import (
	"fmt"
	"os/exec"
	"testing"
	"time"
)

// Throughput of a carried pipe between two dd, by their block size.
func BenchmarkThroughput(b *testing.B) {
	for _, dir := range []byte{'r', 'w'} {
		for _, bs := range []int{4096, 32 << 10, 128 << 10} {
			b.Run(fmt.Sprintf("%c/%d", dir, bs), func(b *testing.B) { throughput(b, dir, bs) })
		}
	}
}

func throughput(b *testing.B, dir byte, bs int) {
	r := newRig(b)
	const total = 128 << 20
	var spent time.Duration
	for b.Loop() {
		pr, pw := userPipe(b)
		gen := exec.Command("dd", "if=/dev/zero", fmt.Sprint("bs=", bs), fmt.Sprint("count=", total/bs), "status=none")
		sink := exec.Command("dd", "of=/dev/null", fmt.Sprint("bs=", bs), "status=none")
		gen.Stdout, sink.Stdin = pw, pr
		var p *placed
		if dir == 'r' {
			p = r.carry('r', dup(b, pr), 0, false)
			sink.Stdin = p.body
		} else {
			p = r.carry('w', dup(b, pw), 0, false)
			gen.Stdout = p.body
		}
		began := time.Now()
		if err := sink.Start(); err != nil {
			b.Fatal(err)
		}
		if err := gen.Start(); err != nil {
			b.Fatal(err)
		}
		p.begun()
		pr.Close()
		pw.Close()
		gen.Wait()
		if dir == 'r' {
			sink.Wait()
		}
		p.ended()
		if dir == 'w' {
			sink.Wait()
		}
		spent += time.Since(began)
	}
	b.ReportMetric(float64(b.N)*total/1e6/spent.Seconds(), "MB/s")
}
