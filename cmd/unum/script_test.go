package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

var built string // folder to remove, if binary made one

// binary builds unum once, as make build does, where everybody may run it.
var binary = sync.OnceValues(func() (string, error) {
	if b := os.Getenv("UNUM_BIN"); b != "" {
		return b, nil
	}
	dir, err := os.MkdirTemp("", "unum-script-")
	if err != nil {
		return "", err
	}
	built = dir
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	b := filepath.Join(dir, "unum")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-E first.entry", "-o", b, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return b, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if built != "" {
		os.RemoveAll(built)
	}
	os.Exit(code)
}

func needRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make a play")
	}
}

var plays atomic.Int32

// TestScripts runs testdata/script: unum as its user types it. Each script has
// a play of its own, named $PLAY, if it starts one.
func TestScripts(t *testing.T) {
	needRoot(t)
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", filepath.Dir(bin)+":"+os.Getenv("PATH"))
			e.Setenv("PLAY", fmt.Sprintf("script-%d-%d", os.Getpid(), plays.Add(1)))
			e.Setenv("SHELL", "/bin/sh")
			e.Setenv("GOCOVERDIR", os.Getenv("GOCOVERDIR"))
			return os.Chmod(e.WorkDir, 0o755)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": cmdExits,
			"up":    cmdUp,
			"gone":  cmdGone,
		},
	})
}

// cmdExits is `exits CODE COMMAND...`: the command ends with that code; a
// signal is -NUMBER. Its output is for stdout and stderr.
func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	err := ts.Exec("python3", append([]string{"-c", `
import subprocess, sys
try:
    r = subprocess.run(sys.argv[2:], timeout=60).returncode
except subprocess.TimeoutExpired:
    r = 'timeout'
sys.exit(0 if str(r) == sys.argv[1] else 'ended with %s, not %s' % (r, sys.argv[1]))
`}, args...)...)
	ts.Check(err)
}

// cmdUp is `up`: it waits until the play $PLAY has its nodes.
func cmdUp(ts *testscript.TestScript, _ bool, _ []string) {
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		out, err := exec.Command(ts.Getenv("PATH")[:strings.Index(ts.Getenv("PATH"), ":")]+"/unum",
			"--cluster", ts.Getenv("PLAY"), "nodes").Output()
		if err == nil && len(regexp.MustCompile(`(?m)^n\d+\*? +up `).FindAll(out, -1)) == 3 {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%s is not up: %v %s", ts.Getenv("PLAY"), err, out)
		}
	}
}

// cmdGone is `gone`: nothing is left of the play $PLAY.
func cmdGone(ts *testscript.TestScript, _ bool, _ []string) {
	if left := leftovers(ts.Getenv("PLAY")); len(left) > 0 {
		ts.Fatalf("left behind: %s", strings.Join(left, ", "))
	}
}

// leftovers lists directories, cgroups, mounts and processes of a play.
func leftovers(name string) []string {
	var left []string
	for _, p := range []string{"/run/unum/play/" + name, "/sys/fs/cgroup/unum-play-" + name, "/sys/fs/cgroup/*/unum-play-" + name} {
		m, _ := filepath.Glob(p)
		left = append(left, m...)
	}
	if b, _ := os.ReadFile("/proc/self/mounts"); strings.Contains(string(b), "/"+name+"/") {
		left = append(left, "mounts")
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if b, _ := os.ReadFile(p); strings.Contains(string(b), "play/"+name+"/") {
			left = append(left, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return left
}
