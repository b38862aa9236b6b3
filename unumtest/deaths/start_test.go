package deaths

import (
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"unum/unumtest"
)

// gate is a FIFO at which scripts wait until the test lets them on.
func (c *cluster) gate(name string) string {
	c.t.Helper()
	file := filepath.Join(c.dir, name)
	os.Remove(file)
	if err := syscall.Mkfifo(file, 0o600); err != nil {
		c.t.Fatal(err)
	}
	return file
}

// arrived returns when a script waits at the gate; pass lets it on.
func (c *cluster) arrived(gate string) (pass func()) {
	c.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		// Refused while nobody reads.
		f, err := os.OpenFile(gate, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if err == nil {
			return func() { f.WriteString("go\n"); f.Close() }
		}
		if time.Now().After(end) {
			c.t.Fatalf("nobody comes to %s: %v", gate, err)
		}
	}
}

// A daemon that has just started knows where to place, also before it has heard
// of anybody: what names a node, from outside or from within, never stays home.
func TestPlacedAfterStart(t *testing.T) {
	c := start(t, 2)
	for range 4 {
		// The script is one daemon's, and goes on under the next.
		gate := c.gate("go")
		j := c.run(`read line < $D/go; for how in n2 elsewhere; do UNUM_NODE=$how cat /run/unum/node; done; unum run -n n2 cat /run/unum/node; true`)
		pass := c.arrived(gate)
		pid := c.node(0).Daemon()
		if !c.killService(0, "daemon") {
			t.Fatal("no daemon to kill")
		}
		pass()
		out, err := c.unum(t.Context(), "run", "-n", "n2", "cat", "/run/unum/node").CombinedOutput()
		if strings.TrimSpace(string(out)) != "n2" {
			t.Errorf("a command named for n2 ran on %q: %v", out, err)
		}
		j.want(30*time.Second, 0, "n2\nn2\nn2")
		if c.node(0).Daemon() == pid {
			t.Error("the daemon was not killed")
		}
	}
}

// The daemon dies at any moment between the request of a command and its end:
// the command runs once, and its client tells how it ended.
func TestRunOverDaemonDeath(t *testing.T) {
	c := start(t, 1)
	rounds := 8
	if unumtest.Long() {
		rounds = 300
	}
	for i := range rounds {
		ran := filepath.Join(c.dir, "ran")
		os.Remove(ran)
		args := []string{"run", "-w", c.dir, "sh", "-c", "echo $$ >> ran; exit 3"}
		if i%4 == 3 { // with a terminal
			args = []string{"-qec", c.bin + " --cluster " + c.Name() + " run -w " + c.dir + ` sh -c 'tty; echo $$ >> ran; exit 3'`, "/dev/null"}
		}
		cmd := c.unum(t.Context(), args...)
		if i%4 == 3 {
			cmd = exec.CommandContext(t.Context(), "script", args...)
			cmd.Stdin = strings.NewReader("")
		}
		done := make(chan struct{})
		time.AfterFunc(rand.N(60*time.Millisecond), func() {
			defer close(done)
			for end := time.Now().Add(10 * time.Second); i%2 == 0 && time.Now().Before(end); {
				if _, err := os.Stat(ran); err == nil {
					break // it runs, and its client may not know yet
				}
				time.Sleep(50 * time.Microsecond)
			}
			for n := 0; !c.killService(0, "daemon") && n < 1000; n++ {
				time.Sleep(5 * time.Millisecond)
			}
		})
		out, _ := cmd.CombinedOutput()
		<-done
		if code := cmd.ProcessState.ExitCode(); code != 3 {
			t.Errorf("round %d: exit %d: %s", i, code, out)
		}
		if i%4 == 3 && !strings.Contains(string(out), "/dev/pts/") {
			t.Errorf("round %d: no terminal: %s", i, out)
		}
		if b, _ := os.ReadFile(ran); strings.Count(string(b), "\n") != 1 {
			t.Errorf("round %d: it ran as %q", i, b)
		}
		c.awaitBack()
	}
	log, _ := os.ReadFile(filepath.Join(c.node(0).Dir, "daemon.log"))
	t.Logf("%d of %d were found again by the next daemon", strings.Count(string(log), "found again"), rounds)
	// Nothing of them is remembered, at the latest when a client that did not
	// hear how its command ended would have given up.
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		d := c.debug(0)
		if d.Runs == 0 {
			break
		}
		if time.Now().After(end) {
			t.Errorf("%d commands are remembered", d.Runs)
			break
		}
	}

	// In the background, too, and its output is there.
	for range rounds / 4 {
		go func() {
			time.Sleep(rand.N(12 * time.Millisecond))
			c.killService(0, "daemon")
		}()
		out, err := c.unum(t.Context(), "run", "-d", "sh", "-c", "echo out; exit 3").CombinedOutput()
		if err != nil {
			t.Errorf("run -d: %v: %s", err, out)
			continue
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		log, err := c.unum(ctx, "logs", "-f", strings.TrimSpace(string(out))).CombinedOutput()
		cancel()
		if string(log) != "out\n" || err != nil {
			t.Errorf("logs: %q, %v", log, err)
		}
		c.awaitBack()
	}
}

// What a client lends to its command it goes on to hold, also under the next
// daemon: the command's output moves the client's position.
func TestLentFileAfterDeath(t *testing.T) {
	c := start(t, 2)
	gate := c.gate("go")
	f, err := os.Create(filepath.Join(c.dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// The shell becomes what is placed, so that nobody else in the world holds it.
	cmd := c.unum(t.Context(), "run", "-n", "here", "sh", "-c", "read line < "+gate+"; UNUM_NODE=n2 exec sh -c 'cat /run/unum/node'")
	cmd.Stdout = f
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pass := c.arrived(gate)
	if !c.killService(0, "daemon") {
		t.Fatal("no daemon to kill")
	}
	c.awaitBack()
	pass()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	f.WriteString("end\n")
	if b, _ := os.ReadFile(f.Name()); string(b) != "n2\nend\n" {
		t.Errorf("%q", b)
	}
}
