package unumtest

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"unum/unumtest/behave"
)

// world is a play with a bash script in it, and what a test does with it: it
// reads lines and answers them.
type world struct {
	t     *testing.T
	play  *Play
	info  *Info
	trace *Trace
	lines chan string
	dir   string // scratch, the script's working directory
}

func needRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

func needLong(t *testing.T) {
	if !Long() {
		t.Skip("long: UNUM_LONG=1, or make test-long")
	}
}

// start runs a bash script as the command of a play. In it $B is the folder
// of the helpers, and `bt` one of them. At the end of the test the play must
// end by itself and leave nothing.
func start(t *testing.T, script string, args ...string) *world {
	t.Helper()
	needRoot(t)
	base, err := os.MkdirTemp("/tmp", "unum-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	os.Chmod(base, 0o755)
	if err := behave.Prepare(base); err != nil {
		t.Fatal(err)
	}
	return startIn(t, base, script, args...)
}

func startIn(t *testing.T, base, script string, args ...string) *world {
	t.Helper()
	f := filepath.Join(base, "script")
	if err := os.WriteFile(f, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	// What is killed leaves its temporary files there.
	tmp := filepath.Join(base, "tmp")
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := Start(Options{
		Args: args, Dir: filepath.Join(base, "w"), Command: []string{"/bin/bash", f},
		Env: []string{"B=" + base + "/bin", "PATH=" + base + "/bin:" + os.Getenv("PATH"), "UNUM_NODE=here", "LC_ALL=C", "TMPDIR=" + tmp},
	})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, play: p, lines: make(chan string, 1000), dir: filepath.Join(base, "w")}
	t.Cleanup(w.end)
	go func() {
		defer close(w.lines)
		sc := bufio.NewScanner(p.Stdout)
		for sc.Scan() {
			w.lines <- sc.Text()
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if w.info, err = p.Info(ctx); err != nil {
		t.Fatal(err)
	}
	w.trace = p.Trace()
	return w
}

// end stops the play and looks for what it left behind.
func (w *world) end() {
	if w.trace != nil {
		w.trace.Look()
	}
	if w.t.Failed() {
		w.t.Log(w.play.Dump())
	}
	if err := w.play.Stop(); err != nil {
		w.t.Error(err)
	}
	if w.trace != nil {
		if left := w.trace.Left(5 * time.Second); len(left) > 0 {
			w.t.Errorf("the play left behind:\n%s", strings.Join(left, "\n"))
		}
	}
}

// want reads lines until one matches, and returns the match. It fails the
// test if none comes in time.
func (w *world) want(within time.Duration, re string) []string {
	w.t.Helper()
	r := regexp.MustCompile(re)
	end := time.After(within)
	var seen []string
	for {
		select {
		case l, ok := <-w.lines:
			if !ok {
				w.t.Fatalf("the script ended before it said %q; it said:\n%s\n%s", re, strings.Join(seen, "\n"), w.play.Stderr())
			}
			if m := r.FindStringSubmatch(l); m != nil {
				return m
			}
			seen = append(seen, l)
		case <-end:
			w.t.Fatalf("nothing like %q within %v; it said:\n%s\n%s%s", re, within, strings.Join(seen, "\n"), w.play.Stderr(), w.processes())
		}
	}
}

// say writes a line to the script.
func (w *world) say(s string) { fmt.Fprintln(w.play.Stdin, s) }

func (w *world) node(id string) Node {
	for _, n := range w.info.Nodes {
		if string(n.ID) == id {
			return n
		}
	}
	w.t.Fatalf("the play has no node %s", id)
	return Node{}
}

// kill ends a process by its PID on the machine.
func (w *world) kill(pid int) {
	w.t.Helper()
	if pid == 0 {
		w.t.Fatal("nothing to kill")
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		w.t.Fatalf("kill %d: %v", pid, err)
	}
}

// processes describes everything in the worlds.
func (w *world) processes() string {
	var b strings.Builder
	for _, n := range w.info.Nodes {
		for _, p := range n.Pids() {
			if len(NSpid(p)) > 2 {
				fmt.Fprintf(&b, "  %s%s", n.ID, behave.Describe(p))
			}
		}
	}
	return b.String()
}

// find waits for the process that the world calls pid: its body on that
// node, or the deputy. It returns its PID on the machine.
func (w *world) find(node string, pid int, deputy bool) int {
	w.t.Helper()
	n := w.node(node)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		for _, p := range n.Pids() {
			if ids := NSpid(p); len(ids) > 2 && ids[len(ids)-1] == pid && IsDeputy(p) == deputy {
				return p
			}
		}
	}
	w.t.Fatalf("process %d (deputy: %v) is not on %s:\n%s", pid, deputy, node, w.processes())
	return 0
}

func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !regexp.MustCompile(`\) [ZX] `).Match(b)
}

// gone waits for a process to end.
func (w *world) gone(pid int, within time.Duration) {
	w.t.Helper()
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if !alive(pid) {
			return
		}
	}
	w.t.Errorf("process %d still lives after %v: %s", pid, within, behave.Describe(pid))
}
