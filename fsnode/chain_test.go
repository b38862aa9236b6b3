package fsnode

import (
	"os"
	"testing"
	"time"

	"unum/carry/file"
)

// A body on n2 whose exec goes on to n3: n2's file of the private mount is
// carried like any other shared file, and position and lines are still n1's.
func TestChain(t *testing.T) {
	p := newPair(t)
	// n3 has a file server of its own; all else of the harness is shared.
	q := newPair(t)
	for id := range q.kinds {
		q.kinds[id].Close()
	}
	q.fs.Close()
	p.nodes["n3"] = &fakeNode{handlers: q.nodes["n2"].handlers}
	q.fs = file.NewFS(file.FSConfig{Socket: file.SocketPath(q.dir), Peer: p.peer("n3")})
	fs := p.fs
	p.fs = q.fs
	p.startKinds("n3")
	p.fs = fs

	f := temp(t, os.O_RDWR, "one\ntwo\nthree\nfour\n")
	out := temp(t, os.O_RDWR, "")
	first := p.carry(f)
	second := p.carryFrom(first.file, p.kinds["n2"], p.kinds["n3"], "n2", "n3")
	o := p.carry(out)
	cmd := command(t, "head", "-n1")
	cmd.Stdin, cmd.Stdout = second.file, o.file
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	second.started()
	o.started()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	second.ended()
	o.ended()
	if got := content(t, out); got != "one\n" {
		t.Errorf("n3 read %q", got)
	}
	first.started()
	first.ended()                                         // with the body on n3, its deputy on n2 ends
	if err := p.body(f, out, "head", "-n1"); err != nil { // a sibling, straight from home
		t.Fatal(err)
	}
	if got := content(t, out); got != "one\ntwo\n" {
		t.Errorf("together %q", got)
	}
	if pos, _ := f.Seek(0, 1); pos != 8 {
		t.Errorf("position at home %d, want 8", pos)
	}
}

// A deputy closes what its body has closed, while the body lives on.
func TestBodyClosesEarly(t *testing.T) {
	p := newPair(t)
	r, w := pipe(t)
	hold, end := pipe(t)
	c := p.carry(r)
	cmd := command(t, "python3", "-ISc", "import os; os.close(0); os.read(1,1)")
	cmd.Stdin, cmd.Stdout = c.file, hold
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.started()
	select {
	case nums := <-p.gave:
		if len(nums) != 1 || nums[0] != int(r.Fd()) {
			t.Errorf("told to close %v", nums)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the deputy was not told")
	}
	r.Close()
	if _, err := w.WriteString("x"); err == nil {
		t.Error("the pipe still has a reader")
	}
	end.WriteString("x")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	c.ended()
}
