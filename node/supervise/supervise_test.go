package supervise

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/node/config"
	"unum/sys"
	"unum/world"
	"unum/world/cgroup"
	"unum/world/worldtest"
)

const testLease = 800 * time.Millisecond

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case world.Stage1Command:
			os.Exit(world.Stage1())
		case world.Stage2Command:
			os.Exit(world.Stage2())
		case "init":
			if err := run(os.Args[3], testLease, slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		case "daemon", "fs":
			os.Exit(fake(os.Args[1], os.Args[3]))
		}
	}
	os.Exit(m.Run())
}

// fake is a service. What it does lies in DIR/do-NAME.
func fake(name, path string) int {
	c, err := config.Load(path)
	if err != nil {
		return 1
	}
	f, _ := os.OpenFile(filepath.Join(c.Dir, name+".started"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	nice, _ := unix.Getpriority(unix.PRIO_PROCESS, 0)
	fmt.Fprintf(f, "%d nice %d\n", os.Getpid(), 20-nice)
	f.Close()
	if name == "fs" {
		noteMount(filepath.Join(c.Dir, "fs.mounts"))
	}
	do, _ := os.ReadFile(filepath.Join(c.Dir, "do-"+name))
	switch strings.TrimSpace(string(do)) {
	case "exit":
		return 3
	case "orphan":
		exec.Command("sh", "-c", "(sleep 0.05; exit 1) & exit 0").Run()
	case "world":
		if _, err := world.Start(context.Background(), world.Config{
			Node: c.Node, Hostname: "h", Range: unum.RangeOf(0), RunDir: c.RunDir, PubDir: c.PubDir(),
			Cgroup: cgroup.Open(c.CgroupPath), Stub: worldtest.Stub(),
		}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		b, err := OpenBeat(c.StateDir())
		if err != nil {
			return 1
		}
		for {
			b.Touch()
			time.Sleep(testLease / 10)
		}
	}
	unix.Pause() // not select: a program without cgo would be dead
	return 0
}

// noteMount writes down the mount that a file server inherited, by the number
// of its memory.
func noteMount(file string) {
	f, _ := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	defer f.Close()
	m, err := sys.InheritedFuseMount(3)
	if err != nil {
		fmt.Fprintln(f, err)
		return
	}
	st, err := m.Memory.Stat()
	if err != nil {
		fmt.Fprintln(f, err)
		return
	}
	fmt.Fprintln(f, st.Sys().(*syscall.Stat_t).Ino, "dead", m.Dead())
}

type node struct {
	t   *testing.T
	c   *config.Config
	cmd *exec.Cmd
}

func startNode(t *testing.T, do map[string]string) *node {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	c := &config.Config{Node: "n1", Dir: dir, RunDir: filepath.Join(dir, "run"),
		CgroupPath: fmt.Sprintf("unum-test-init-%d-%s", os.Getpid(), t.Name())}
	for _, d := range []string{c.RunDir, c.PubDir(), c.StateDir()} {
		os.Mkdir(d, 0o755)
	}
	for name, what := range do {
		os.WriteFile(filepath.Join(dir, "do-"+name), []byte(what), 0o644)
	}
	g, err := cgroup.Create(c.CgroupPath, 0)
	if err != nil {
		t.Skip(err)
	}
	if err := c.Save(); err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, c: c, cmd: exec.Command("/proc/self/exe", "init", "--config", c.Path())}
	out := new(bytes.Buffer)
	n.cmd.Stderr = out
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.cmd.Process.Kill()
		n.cmd.Wait()
		if err := g.Remove(context.Background()); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(out)
			for _, s := range []string{"daemon", "fs"} {
				b, _ := os.ReadFile(c.Log(s))
				t.Logf("%s: %s", s, b)
			}
		}
	})
	return n
}

// starts lists the lines that a service wrote at its starts.
func (n *node) starts(name string) []string {
	b, _ := os.ReadFile(filepath.Join(n.c.Dir, name+".started"))
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

func (n *node) until(what string, ok func() bool) {
	n.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatalf("not within 5 s: %s", what)
		}
	}
}

// children lists the children of the node's init.
func (n *node) children() []string {
	var all []string
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", n.cmd.Process.Pid))
	for _, f := range tasks {
		b, _ := os.ReadFile(f)
		all = append(all, strings.Fields(string(b))...)
	}
	return all
}

// pid is the host's number of a service.
func (n *node) pid(name string) int {
	for _, c := range n.children() {
		args, _ := os.ReadFile("/proc/" + c + "/cmdline")
		if strings.HasPrefix(string(args), "unum\x00"+name+"\x00") {
			pid, _ := strconv.Atoi(c)
			return pid
		}
	}
	return 0
}

func TestRestart(t *testing.T) {
	n := startNode(t, map[string]string{"daemon": "orphan"})
	n.until("both run", func() bool { return len(n.starts("daemon")[0]) > 0 && len(n.starts("fs")[0]) > 0 })
	if got := n.starts("daemon")[0]; !strings.HasSuffix(got, "nice -15") {
		t.Errorf("daemon started with %s", got)
	}
	if got := n.starts("fs")[0]; !strings.HasSuffix(got, "nice 0") {
		t.Errorf("fs started with %s", got)
	}
	unix.Kill(n.pid("fs"), unix.SIGKILL)
	n.until("fs is back", func() bool { return len(n.starts("fs")) == 2 })
	n.until("daemon can be killed", func() bool { return n.pid("daemon") != 0 })
	unix.Kill(n.pid("daemon"), unix.SIGKILL)
	n.until("daemon is back", func() bool { return len(n.starts("daemon")) == 2 })
	n.until("orphans are reaped", func() bool { return len(n.children()) == 2 })
}

func TestBackoff(t *testing.T) {
	n := startNode(t, map[string]string{"daemon": "exit"})
	n.until("daemon has failed a few times", func() bool { return len(n.starts("daemon")) >= 4 })
	time.Sleep(500 * time.Millisecond) // what a loop without back-off would fill with hundreds
	if k := len(n.starts("daemon")); k > 10 {
		t.Errorf("%d starts within half a second", k)
	}
	if k := len(n.starts("fs")); k != 1 {
		t.Errorf("%d starts of fs", k)
	}
}

func TestLease(t *testing.T) {
	n := startNode(t, map[string]string{"daemon": "world"})
	g := cgroup.Open(n.c.CgroupPath)
	worldPid := func() int {
		pids, _ := g.Procs()
		for _, p := range pids {
			if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p)); bytes.HasPrefix(b, []byte("unum-world")) {
				return p
			}
		}
		return 0
	}
	n.until("the world runs", func() bool { return worldPid() != 0 })
	pid := worldPid()
	time.Sleep(2 * testLease)
	if worldPid() != pid {
		t.Fatal("the world died under a living daemon")
	}
	// A daemon that stops lets the lease run out as one that died.
	unix.Kill(n.pid("daemon"), unix.SIGSTOP)
	began := time.Now()
	n.until("the world is killed", func() bool { return worldPid() == 0 })
	if d := time.Since(began); d < testLease*8/10 || d > testLease*3/2 {
		t.Errorf("killed after %v", d)
	}
}

// Every file server gets the same mount, until the world is killed: then the
// mount ends, and the next one gets another.
func TestMount(t *testing.T) {
	n := startNode(t, map[string]string{"daemon": "world"})
	mounts := func() []string {
		b, _ := os.ReadFile(filepath.Join(n.c.Dir, "fs.mounts"))
		return strings.Split(strings.TrimSpace(string(b)), "\n")
	}
	n.until("a mount is there", func() bool { return mounts()[0] != "" })
	first := mounts()[0]
	if !strings.HasSuffix(first, "dead false") {
		t.Fatal(first)
	}
	for i := range 3 {
		unix.Kill(n.pid("fs"), unix.SIGKILL)
		n.until("the next one is there", func() bool { return len(mounts()) == 2+i })
		if got := mounts()[1+i]; got != first {
			t.Errorf("mount %s, then %s", first, got)
		}
	}
	unix.Kill(n.pid("daemon"), unix.SIGSTOP)
	n.until("another mount is there", func() bool { return len(mounts()) == 5 })
	if got := mounts()[4]; got == first || !strings.HasSuffix(got, "dead false") {
		t.Errorf("mount %s, then %s", first, got)
	}
}

func TestTerm(t *testing.T) {
	n := startNode(t, nil)
	n.until("both run", func() bool { return n.pid("daemon") != 0 && n.pid("fs") != 0 && len(n.starts("fs")[0]) > 0 })
	n.cmd.Process.Signal(unix.SIGTERM)
	if err := n.cmd.Wait(); err != nil {
		t.Errorf("init ended with %v", err)
	}
}

func TestBeat(t *testing.T) {
	dir := t.TempDir()
	if _, ok := LastBeat(dir); ok {
		t.Error("a beat out of nothing")
	}
	b, err := OpenBeat(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, ok := LastBeat(dir); ok {
		t.Error("a beat before the first Touch")
	}
	b.Touch()
	if age, ok := LastBeat(dir); !ok || age < 0 || age > time.Second {
		t.Errorf("LastBeat() = %v, %v", age, ok)
	}
}
