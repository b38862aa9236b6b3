package unumtest

import (
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// netns starts a process in a network namespace of its own.
func netns(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

// A namespace that is held is left; another that was given its number is not.
func TestNamespaceIsLeft(t *testing.T) {
	needRoot(t)
	tr := newTrace("test-none")
	look := func(pid int) (string, namespace) {
		file := "/proc/" + strconv.Itoa(pid) + "/ns/net"
		ns, ok := tr.namespace(file)
		if !ok {
			t.Fatal("no " + file)
		}
		return file, ns
	}
	held := func(pid int, file string, want bool) {
		t.Helper()
		if _, yes := tr.holds(pid, file); yes != want {
			t.Errorf("left: %v, of %v and the end at %d", yes, tr.ns, tr.over)
		}
	}
	t.Run("by id", func(t *testing.T) {
		pid := netns(t).Process.Pid
		file, ns := look(pid)
		if ns.id == 0 {
			t.Skip("this kernel has no ids of namespaces: 6.18")
		}
		tr.ns = map[namespace]bool{ns: true}
		held(pid, file, true)
		ns.id--
		tr.ns = map[namespace]bool{ns: true}
		held(pid, file, false)
	})
	t.Run("by age", func(t *testing.T) {
		tr.id = func(string) (uint64, error) { return 0, unix.ENOTTY }
		pid := netns(t).Process.Pid
		file, ns := look(pid)
		tr.ns, tr.over = map[namespace]bool{ns: true}, ticks()
		held(pid, file, true)
		tr.over = startTime(pid) - 1
		held(pid, file, false)
	})
}

// A name is not the beginning of another.
func TestNamed(t *testing.T) {
	for s, want := range map[string]bool{
		"4:memory:/unum-play-test-1-1/n2\n":         true,
		"4:memory:/unum-play-test-1-1":              true,
		"4:memory:/unum-play-test-1-1\n":            true,
		"4:memory:/unum-play-test-1-10/n2":          false,
		"/unum-play-test-1-10 /unum-play-test-1-1 ": true,
		"": false,
	} {
		if named(s, "/unum-play-test-1-1") != want {
			t.Errorf("%q: %v", s, !want)
		}
	}
}

func TestStartTime(t *testing.T) {
	before := ticks()
	time.Sleep(20 * time.Millisecond)
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	if s := startTime(cmd.Process.Pid); s < before || s > ticks() {
		t.Errorf("started at %d; before it was %d, now it is %d", s, before, ticks())
	}
}
