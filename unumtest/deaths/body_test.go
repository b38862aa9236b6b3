package deaths

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Within this the parent knows.
const known = 2 * time.Second

func ended(pid int) bool { return syscall.Kill(pid, 0) != nil }

func (c *cluster) awaitEnd(pid int) {
	c.t.Helper()
	for end := time.Now().Add(known); !ended(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("%d lives on", pid)
		}
	}
}

// A body that is killed, a deputy that is killed, and a parent.
func TestProcessesDie(t *testing.T) {
	c := start(t, 2)
	pair := func() (body, deputy int) {
		body = c.await("the body", 1, func() []int { return c.find(1, "sleep") })[0]
		deputy = c.await("the deputy", 1, func() []int { return c.deputies(0, "sleep") })[0]
		return
	}
	for _, x := range []struct {
		sig  syscall.Signal
		want string
	}{{syscall.SIGKILL, "status 137"}, {syscall.SIGTERM, "status 143"}, {syscall.SIGSEGV, "status 139"}} {
		j := c.run(`UNUM_NODE=n2 sleep 1000; echo status $?`)
		body, _ := pair()
		syscall.Kill(body, x.sig)
		j.want(known, 0, x.want)
	}
	j := c.run(`UNUM_NODE=n2 sleep 1000; echo status $?`)
	body, deputy := pair()
	syscall.Kill(deputy, syscall.SIGKILL)
	j.want(known, 0, "status 137")
	c.awaitEnd(body)

	// In the middle of a pipeline the others go on as they do natively.
	j = c.run(`yes | UNUM_NODE=n2 sleep 1000 | cat; echo status ${PIPESTATUS[*]}`)
	body, _ = pair()
	syscall.Kill(body, syscall.SIGKILL)
	j.want(known, 0, "status 141 137 0")

	// A parent that is killed leaves the body running.
	j = c.run(`bash -c 'echo $$ > $D/parent; UNUM_NODE=n2 sleep 1000; exit 1'; echo status $?; exec > /dev/null; while [ ! -e $D/go ]; do sleep 0.1; done`)
	body = c.await("the body", 1, func() []int { return c.find(1, "sleep") })[0]
	b, _ := os.ReadFile(filepath.Join(c.dir, "parent"))
	c.run("kill -9 "+strings.TrimSpace(string(b))).want(5*time.Second, 0, "")
	time.Sleep(300 * time.Millisecond)
	if ended(body) {
		t.Error("the body died with its parent")
	}
	syscall.Kill(body, syscall.SIGKILL)
	c.awaitEnd(body)
	os.WriteFile(filepath.Join(c.dir, "go"), nil, 0o600)
	j.want(5*time.Second, 0, "status 137")
}
