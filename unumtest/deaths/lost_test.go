package deaths

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"unum/sys"
)

// ticker is a placed program that writes down when it ran last.
const ticker = `UNUM_NODE=n2 /usr/bin/perl -e '
	use Time::HiRes qw(time sleep);
	print "$$\n";
	$| = 1;
	while (1) { open F, ">", "$ENV{D}/tick.new"; print F time; close F; rename "$ENV{D}/tick.new", "$ENV{D}/tick"; sleep 0.01 }' > $D/pid &
wait $!; echo status $?; date +%s.%N`

// A node that is cut off halts its guests before the others declare it lost,
// kills them when it learns so, and comes back as a new one.
func TestCutOffNode(t *testing.T) {
	c := start(t, 3)
	j := c.run(ticker)
	tick := filepath.Join(c.dir, "tick")
	for range 500 {
		if _, err := os.Stat(tick); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	bodies := c.await("the body", 1, func() []int { return c.find(1, "perl") })
	cut := time.Now()
	if err := c.SetLink(1, false); err != nil {
		t.Fatal(err)
	}
	if code := j.ended(5 * time.Second); code != 0 {
		t.Fatalf("exit %d: %s", code, j.err.String())
	}
	told := time.Since(cut)
	lines := strings.Fields(j.out.String())
	if len(lines) < 3 || lines[1] != "137" {
		t.Fatalf("%q", j.out.String())
	}
	st, err := os.Stat(tick)
	if err != nil {
		t.Fatal(err)
	}
	ran := st.ModTime().Sub(cut)
	t.Logf("the body ran for %v after the cut, its parent was told after %v", ran, told)
	time.Sleep(200 * time.Millisecond)
	if st, _ := os.Stat(tick); st.ModTime().Sub(cut) > told-20*time.Millisecond {
		t.Error("the body ran when its parent had been told that it is dead")
	}
	pid, _ := os.ReadFile(filepath.Join(c.dir, "pid"))
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if out, _ := c.unum(ctx, "why", strings.TrimSpace(string(pid))).CombinedOutput(); !strings.Contains(string(out), "n2") {
		t.Errorf("unum why does not name the node: %s", out)
	}
	if err := c.SetLink(1, true); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); syscall.Kill(bodies[0], 0) == nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the body lives on")
		}
	}
	c.awaitBack()
	c.run(`UNUM_NODE=n2 sh -c 'exit 7'; echo $?`).want(20*time.Second, 0, "7")
}

// The node of a body ends; its parent hears it in time.
func TestBodyNodeEnds(t *testing.T) {
	c := start(t, 3)
	j := c.run(ticker)
	c.await("the body", 1, func() []int { return c.find(1, "perl") })
	c.Kill(1)
	if code := j.ended(6 * time.Second); code != 0 || !strings.HasPrefix(j.out.String(), "status 137") {
		t.Fatalf("exit %d: %s", code, j.out.String())
	}
}

// The node ends that was asked to begin a body and has not answered: nobody
// knows what that has done, so it is not run again.
func TestNodeEndsBeforeItAnswers(t *testing.T) {
	c := start(t, 3)
	ran := filepath.Join(c.dir, "ran")
	var j *job
	for held := false; !held; {
		os.Remove(ran)
		gate := c.gate("go")
		j = c.run(`read line < $D/go; UNUM_NODE=n2 sh -c 'echo ran >> $D/ran' & wait $!; echo status $?; ls $D`)
		pass := c.arrived(gate)
		if err := syscall.Kill(c.node(1).Daemon(), syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		pass()
		os.Remove(gate)
		for over := false; !held && !over; time.Sleep(5 * time.Millisecond) {
			over = !j.runs()
			for _, p := range c.find(0, "bash") {
				t, err := sys.ReadStatus(p)
				held = held || err == nil && t.Tracer != 0
			}
		}
		if !held { // n2 was suspect before it was asked, so the command stayed at home
			syscall.Kill(c.node(1).Daemon(), syscall.SIGCONT)
			c.awaitBack()
		}
	}
	c.Kill(1)
	if code := j.ended(10 * time.Second); code != 0 || j.out.String() != "status 137\n" {
		t.Fatalf("exit %d: %s", code, j.out.String())
	}
}

// The node that is home of a placed process ends: bodies elsewhere die.
func TestHomeEnds(t *testing.T) {
	c := start(t, 3)
	j := c.run(`UNUM_NODE=n2 bash -c 'UNUM_NODE=n3 sleep 1000'; echo status $?`)
	body := c.await("the body", 1, func() []int { return c.find(2, "sleep") })
	c.Kill(1)
	if code := j.ended(6 * time.Second); code != 0 || !strings.HasPrefix(j.out.String(), "status 137") {
		t.Fatalf("exit %d: %s", code, j.out.String())
	}
	for end := time.Now().Add(6 * time.Second); syscall.Kill(body[0], 0) == nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the body lives on")
		}
	}
}

// With n1 the cluster ends; nothing hangs, nothing is left.
func TestCoordinatorEnds(t *testing.T) {
	c := start(t, 2)
	j := c.run(`UNUM_NODE=n2 sleep 1000`)
	c.await("the body", 1, func() []int { return c.find(1, "sleep") })
	c.Kill(0)
	if code := j.ended(30 * time.Second); code == 0 {
		t.Errorf("exit %d", code)
	}
}

// A guest is lost, and back as another node, while the daemon of the home of
// its bodies is away: home learns of it when it has a daemon again.
func TestGuestIsLostWhileHomeIsAway(t *testing.T) {
	c := start(t, 4)
	j := c.run(`UNUM_NODE=n2 bash -c 'UNUM_NODE=n3 sleep 1000; echo status $?'`)
	c.await("the body", 1, func() []int { return c.find(2, "sleep") })
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			c.killService(1, "daemon")
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	defer func() { <-stopped }()
	ups := func(n int) {
		t.Helper()
		for end := time.Now().Add(6 * time.Second); c.up() != n; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				close(stop)
				t.Fatalf("%d nodes are up, want %d", c.up(), n)
			}
		}
	}
	ups(3) // n2 is suspect
	if err := c.SetLink(2, false); err != nil {
		t.Fatal(err)
	}
	ups(2)
	for end := time.Now().Add(4 * time.Second); !c.down("n3"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			close(stop)
			t.Fatal("n3 is not declared lost")
		}
	}
	if err := c.SetLink(2, true); err != nil {
		t.Fatal(err)
	}
	ups(3)
	close(stop)
	j.want(20*time.Second, 0, "status 137")
}

// The world of a guest ends, with its daemon or without, and the next one is
// there before anybody has missed the node: what ran in the first is known to
// be dead all the same.
func TestWorldEnds(t *testing.T) {
	c := start(t, 3)
	for _, daemon := range []bool{true, false} {
		j := c.run(`UNUM_NODE=n2 sleep 1000; echo status $?`)
		c.await("the body", 1, func() []int { return c.find(1, "sleep") })
		pid1, err := c.node(1).WorldPid()
		if err != nil {
			t.Fatal(err)
		}
		if daemon {
			c.killService(1, "daemon")
		}
		syscall.Kill(pid1, syscall.SIGKILL)
		if code := j.ended(patience); code != 0 || j.out.String() != "status 137\n" {
			t.Fatalf("exit %d: %s", code, j.out.String())
		}
		c.awaitBack()
		c.run(`UNUM_NODE=n2 sh -c 'exit 7'; echo $?`).want(20*time.Second, 0, "7")
	}
}
