package bench

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"unum/bench/probe"
)

func TestNoop(t *testing.T) {
	path := filepath.Join(t.TempDir(), "noop")
	if err := writeNoop(path); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command(path).Run(); err != nil {
		t.Errorf("the no-op: %v", err)
	}
}

func TestStats(t *testing.T) {
	ns := []int64{9, 1, 5, 3, 7}
	if m := median(ns); m != 5 || ns[0] != 9 {
		t.Errorf("median %v of %v", m, ns)
	}
	if median(nil) != 0 || medianOf(nil) != 0 {
		t.Error("nothing has a median")
	}
	if m := medianOf([]float64{4, 1, 2, 3}); m != 2.5 {
		t.Errorf("median of four: %v", m)
	}
	if r := ratios([]float64{2, 9, 1}, []float64{1, 3}); len(r) != 2 || r[0] != 2 || r[1] != 3 {
		t.Errorf("ratios %v", r)
	}
}

func TestGates(t *testing.T) {
	var r Report
	r.add(Row{Name: "a", Ratio: 1.5, Gate: atMost(1.5)})
	r.add(Row{Name: "b", Ratio: 1.51, Gate: atMost(1.5)})
	r.add(Row{Name: "c", Ratio: 39, Gate: atLeast(40)})
	r.add(Row{Name: "d", Value: 81, Gate: &Gate{Limit: 80, Value: true}})
	r.add(Row{Name: "e", Err: "it broke\nbadly", Gate: atMost(1)})
	if r.Missed() != 3 || r.Failed() != 1 || !r.Rows[0].Gate.Met {
		t.Errorf("missed %d, failed %d", r.Missed(), r.Failed())
	}
	var b bytes.Buffer
	if err := r.Print(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"≤ 1.5: met", "≥ 40: MISSED", "≤ 80: MISSED", "failed: it broke\n", "3 gates missed, 1 figures failed"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in\n%s", want, b.String())
		}
	}
	path := filepath.Join(t.TempDir(), "r.json")
	if err := r.Save(path); err != nil {
		t.Fatal(err)
	}
	data, _ := os.ReadFile(path)
	var back Report
	if err := json.Unmarshal(data, &back); err != nil || len(back.Rows) != 5 {
		t.Errorf("%d rows came back: %v", len(back.Rows), err)
	}
}

func TestSources(t *testing.T) {
	if got := withSources("Types: deb\nURIs: x\n", ".sources"); got != "Types: deb deb-src\nURIs: x\n" {
		t.Errorf("deb822: %q", got)
	}
	if got := withSources("deb http://x y z\n# deb q", ".list"); got != "deb http://x y z\ndeb-src http://x y z\n# deb q" {
		t.Errorf("one line: %q", got)
	}
}

func TestRedisCSV(t *testing.T) {
	m, err := redisCSV("\"test\",\"rps\",\"avg\"\n\"SET\",\"50547.60\",\"0.262\"\n")
	if err != nil || m["SET"] != 50547.60 {
		t.Errorf("%v, %v", m, err)
	}
	if _, err := redisCSV(""); err == nil {
		t.Error("nothing is taken for a result")
	}
}

// Every operation, natively: what is measured works and says when it fails.
func TestProbe(t *testing.T) {
	dir := t.TempDir()
	b := &bench{opt: Options{}, dir: dir, self: filepath.Join(dir, "unum-bench")}
	cmd := exec.Command("go", "build", "-o", b.self, "./cmd/unum-bench")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	nop := filepath.Join(dir, "noop")
	if err := writeNoop(nop); err != nil {
		t.Fatal(err)
	}
	p, err := b.native(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	for _, c := range []struct {
		q       probe.Request
		samples int
	}{
		{probe.Request{Op: probe.OpExec, Argv: []string{nop}, N: 50}, 50},
		{probe.Request{Op: probe.OpExec, Argv: []string{"/bin/true"}, N: 10}, 10},
		{probe.Request{Op: probe.OpRead, N: 5}, 5},
		{probe.Request{Op: probe.OpPing, N: 100}, 100},
		{probe.Request{Op: probe.OpPipe, N: 5<<20 + 1}, 1},
		{probe.Request{Op: probe.OpKey, N: 20}, 20},
		{probe.Request{Op: probe.OpLog, N: 100, Dir: dir}, 100},
	} {
		r, err := p.do(t.Context(), 10*time.Second, c.q)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.NS) != c.samples || median(r.NS) <= 0 {
			t.Errorf("%s: %d samples, median %v", c.q.Op, len(r.NS), median(r.NS))
		}
	}
	r, err := p.do(t.Context(), 10*time.Second, probe.Request{Op: probe.OpRun, Argv: []string{"sh", "-c", "echo $X; exit 3"}, Env: []string{"X=y"}, Dir: dir})
	if err != nil || r.Status != 3 || r.Out != "y\n" {
		t.Errorf("run: %+v, %v", r, err)
	}
	for _, q := range []probe.Request{
		{Op: probe.OpExec, Argv: []string{"/bin/false"}, N: 1},
		{Op: probe.OpExec, Argv: []string{"/nowhere"}, N: 1},
		{Op: "nothing"},
	} {
		if _, err := p.do(t.Context(), 10*time.Second, q); err == nil {
			t.Errorf("%s %v is no error", q.Op, q.Argv)
		}
	}
	if _, err := p.do(t.Context(), 200*time.Millisecond, probe.Request{Op: probe.OpRun, Argv: []string{"sleep", "1"}, Dir: dir}); err == nil {
		t.Error("a request that takes too long is no error")
	}
	if _, err := p.do(t.Context(), time.Second, probe.Request{Op: probe.OpRead, N: 1}); err == nil {
		t.Error("a dead place answers")
	}
}
