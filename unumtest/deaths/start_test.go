package deaths

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
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
