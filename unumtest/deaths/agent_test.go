package deaths

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"unum/sys"
)

// The agent whose child a process is, here or on its guest, is killed, and
// perhaps a daemon with it: how the process ends is known all the same.
func TestAgentDies(t *testing.T) {
	c := start(t, 2)
	status, lost := "status 5", "status 137"
	if major, minor := sys.KernelVersion(); major < 6 || major == 6 && minor < 15 {
		status = lost // the kernel does not tell
	}
	script := `UNUM_NODE=n2 perl -e 'select undef,undef,undef,0.01 while ! -e "$ENV{D}/go"; exit 5'; echo status $?`
	agentOf := func(pid int) {
		t.Helper()
		task, err := sys.ReadTask(pid)
		if err != nil || task.Ppid == 0 {
			t.Fatalf("parent of %d: %v", pid, err)
		}
		syscall.Kill(task.Ppid, syscall.SIGKILL)
		c.awaitEnd(task.Ppid)
	}
	for _, x := range []struct {
		name   string
		run    bool // the agent of the shell, not of the body
		daemon int  // that dies too; -1: none
		ends   bool // while no daemon is there
		want   string
	}{
		{"session", false, -1, false, status},
		{"session and daemon", false, 1, false, status},
		{"session and daemon, and the body ends", false, 1, true, ""},
		{"run", true, -1, false, "status 5"},
		{"run and daemon", true, 0, false, "status 5"},
	} {
		t.Run(x.name, func(t *testing.T) {
			c.t = t
			file := filepath.Join(c.dir, "go")
			os.Remove(file)
			j := c.run(script)
			body := c.await("the body", 1, func() []int { return c.find(1, "perl") })[0]
			c.await("the deputy", 1, func() []int { return c.deputies(0, "perl") })
			if x.ends {
				c.killService(x.daemon, "daemon")
				syscall.Kill(body, syscall.SIGTERM)
			}
			if x.run {
				agentOf(c.find(0, "bash")[0])
			} else {
				agentOf(body)
			}
			if x.daemon >= 0 && !x.ends {
				c.killService(x.daemon, "daemon")
				c.awaitBeat(x.daemon, j.done)
			}
			os.WriteFile(file, nil, 0o600)
			switch {
			case x.run && status == lost:
				j.ended(10 * time.Second)
			case x.ends:
				// A daemon that was quick has asked the agent before it died.
				if j.ended(10 * time.Second); j.out.String() != "status 143\n" {
					j.want(known, 0, lost)
				}
			default:
				j.want(10*time.Second, 0, x.want)
			}
			c.awaitBack()
			c.run(`UNUM_NODE=n2 sh -c 'exit 7'; echo $?`).want(10*time.Second, 0, "7")
		})
	}
}
