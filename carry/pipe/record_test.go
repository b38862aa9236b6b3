package pipe

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A record is a line of one letter, written at once.
const writerEnv = "UNUM_TEST_PIPE_WRITER"

func recordLen(i int) int { return 1 + i*i%300 + i%13*250 }

// writeRecords writes "letter count" records to standard output.
func writeRecords(s string) {
	var letter string
	var count int
	fmt.Sscan(s, &letter, &count)
	for i := range count {
		rec := append(bytes.Repeat([]byte(letter), recordLen(i)), '\n')
		if _, err := os.Stdout.Write(rec); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func recordWriter(letter string, count int) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d", writerEnv, letter, count))
	cmd.Stderr = os.Stderr
	return cmd
}

// checkRecords reads all records; of each letter every one must be there,
// whole and in order.
func checkRecords(t *testing.T, r io.Reader, letters string, count int) {
	t.Helper()
	next := map[byte]int{}
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		line := sc.Bytes()
		if len(line) == 0 {
			t.Fatal("an empty record")
		}
		c := line[0]
		if len(line) != recordLen(next[c]) || len(bytes.Trim(line, string(c))) != 0 {
			t.Fatalf("record %d of %c is torn: %.60q… of %d bytes, want %d", next[c], c, line, len(line), recordLen(next[c]))
		}
		next[c]++
	}
	for _, c := range []byte(letters) {
		if next[c] != count {
			t.Errorf("%d records of %c, want %d", next[c], c, count)
		}
	}
}

// Two placed writers and one at home share a pipe: no record is torn.
func TestRecordsOfThreeWriters(t *testing.T) {
	r := newRig(t)
	pr, pw := userPipe(t)
	const count = 20000
	a := r.carry('w', dup(t, pw), 0, true)
	b := r.carry('w', dup(t, pw), 0, true)
	local := recordWriter("c", count)
	local.Stdout = pw
	if err := local.Start(); err != nil {
		t.Fatal(err)
	}
	ca, cb := a.start(recordWriter("a", count)), b.start(recordWriter("b", count))
	pw.Close()
	for _, e := range []struct {
		p   *placed
		cmd *exec.Cmd
	}{{a, ca}, {b, cb}} {
		go e.p.wait(e.cmd)
	}
	began := time.Now()
	checkRecords(t, pr, "abc", count)
	t.Logf("%v", time.Since(began))
	local.Wait()
}

// Packets survive restarts of both daemons whole.
func TestRecordsOverRestarts(t *testing.T) {
	r := newRig(t)
	pr, pw := userPipe(t)
	const count = 20000
	p := r.carry('w', dup(t, pw), 0, true)
	local := recordWriter("c", count)
	local.Stdout = pw
	if err := local.Start(); err != nil {
		t.Fatal(err)
	}
	pw.Close()
	cmd := p.start(recordWriter("a", count))
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	go func() {
		n := 0
		for {
			select {
			case <-ended:
				t.Logf("%d restarts", n)
				p.ended()
				return
			case <-time.After(5 * time.Millisecond):
				p.restart(n % 2)
				n++
			}
		}
	}()
	checkRecords(t, pr, "ac", count)
	local.Wait()
}

// Standard output and standard error are two descriptions of one pipe: what
// goes through them stays in order.
func TestTwoDescriptions(t *testing.T) {
	r := newRig(t)
	pr, pw := userPipe(t)
	other := os.NewFile(uintptr(must(unix.Open(fmt.Sprintf("/proc/self/fd/%d", pw.Fd()), unix.O_WRONLY|unix.O_CLOEXEC, 0))), "pipe")
	p := r.carry('w', pw, 0, false)
	d := *p.d
	d.Nums = []int{2}
	h2, err := r.side[0].c.Write().Serve(t.Context(), p.pl, &d, dup(t, other))
	if err != nil {
		t.Fatal(err)
	}
	g2, err := r.side[1].c.Write().Land(t.Context(), p.pl, &d)
	if err != nil {
		t.Fatal(err)
	}
	cmd := sh(`i=0; while [ $i -lt 1000 ]; do echo $i; i=$((i+1)); echo $i >&2; i=$((i+1)); done`)
	cmd.Stderr = g2.Local().File
	p.start(cmd)
	g2.Started(true)
	g2.Local().File.Close()
	h2.Commit()
	go func() {
		cmd.Wait()
		g2.Flush(t.Context(), true)
		h2.Close()
		g2.Close()
		other.Close()
		p.ended()
	}()
	sc := bufio.NewScanner(pr)
	for i := 0; ; i++ {
		if !sc.Scan() {
			if i != 1000 {
				t.Errorf("%d lines", i)
			}
			break
		}
		if sc.Text() != fmt.Sprint(i) {
			t.Fatalf("line %d is %s", i, sc.Text())
		}
	}
}

func must(fd int, err error) int {
	if err != nil {
		panic(err)
	}
	return fd
}
