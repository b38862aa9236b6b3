package deaths

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"unum/node"
	"unum/node/config"
	"unum/node/supervise"
	"unum/play"
	"unum/unumtest"
	"unum/wire"
)

// cluster is a play whose nodes can be hurt.
type cluster struct {
	*play.Play
	t   *testing.T
	bin string
	dir string // in the root, for the test's files
}

var made atomic.Int32

// start makes a cluster that ends with the test.
func start(t *testing.T, nodes int) *cluster {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make namespaces and cgroups")
	}
	bin, err := unumtest.Build()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	p, err := play.Start(ctx, play.Config{
		Name: fmt.Sprintf("deaths-%d-%d", os.Getpid(), made.Add(1)), Nodes: nodes, Exe: bin,
		Trust: func(_ context.Context, nodes []*config.Config) error {
			ca, err := wire.NewAuthority(nodes[0].Cluster, 24*time.Hour)
			if err != nil {
				return err
			}
			for _, n := range nodes {
				cert, err := ca.Issue(n.Node, 24*time.Hour)
				if err != nil {
					return err
				}
				if err := ca.SaveNode(n.TLSDir(), cert); err != nil {
					return err
				}
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{Play: p, t: t, bin: bin}
	t.Cleanup(func() {
		if t.Failed() {
			c.dump()
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := p.Stop(ctx); err != nil {
			t.Error(err)
		}
		for _, l := range play.Leftovers(p.Name()) {
			t.Error("left of the play:", l)
		}
	})
	c.dir = t.TempDir()
	if err := p.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	for c.up() < nodes {
		if ctx.Err() != nil {
			t.Fatal("the nodes do not see each other")
		}
		time.Sleep(20 * time.Millisecond)
	}
	return c
}

// nodeRow is what `unum nodes` says of a node, as far as it is used here.
type nodeRow struct {
	ID    string `json:"node"`
	State string
	Load  struct{ CPUs float64 }
}

func (c *cluster) nodes() (rows []nodeRow) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, _ := c.unum(ctx, "nodes", "--json").Output()
	if json.Unmarshal(out, &rows) != nil {
		return nil
	}
	return rows
}

// up counts the nodes that are up and have told their load.
func (c *cluster) up() int {
	n := 0
	for _, x := range c.nodes() {
		if x.State == "up" && x.Load.CPUs > 0 {
			n++
		}
	}
	return n
}

// down says whether a node is declared lost.
func (c *cluster) down(id string) bool {
	for _, x := range c.nodes() {
		if x.ID == id {
			return x.State == "down"
		}
	}
	return false
}

// unum is a command line against the cluster, from outside.
func (c *cluster) unum(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.bin, append([]string{"--cluster", c.Name()}, args...)...)
	cmd.WaitDelay = 2 * time.Second
	cmd.Dir = c.dir
	return cmd
}

// job is a shell script that runs on n1.
type job struct {
	c        *cluster
	cmd      *exec.Cmd
	done     chan struct{}
	out, err bytes.Buffer
	script   string
}

// run starts a script in bash on n1.
func (c *cluster) run(script string, env ...string) *job {
	c.t.Helper()
	j := &job{c: c, done: make(chan struct{}), script: script}
	j.cmd = c.unum(context.Background(), "run", "-n", "here", "bash", "-c", script)
	j.cmd.Env = append(os.Environ(), append([]string{"D=" + c.dir, "TMPDIR=" + c.dir}, env...)...)
	j.cmd.Stdout, j.cmd.Stderr = &j.out, &j.err
	if err := j.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	go func() {
		j.cmd.Wait()
		close(j.done)
	}()
	c.t.Cleanup(func() {
		j.cmd.Process.Kill()
		<-j.done
	})
	return j
}

// ended waits for the end and returns the exit code, with what was written.
func (j *job) ended(within time.Duration) int {
	j.c.t.Helper()
	select {
	case <-j.done:
	case <-time.After(within):
		j.c.t.Fatalf("hangs: %s", j.script)
	}
	return j.cmd.ProcessState.ExitCode()
}

// want checks status and standard output.
func (j *job) want(within time.Duration, code int, out string) {
	j.c.t.Helper()
	if got := j.ended(within); got != code || strings.TrimSpace(j.out.String()) != out {
		j.c.t.Fatalf("exit %d, output %q, want %d, %q\nstandard error: %s", got, clip(j.out.String()), code, clip(out), clip(j.err.String()))
	}
}

func clip(s string) string {
	if len(s) > 2000 {
		return s[:1000] + " … " + s[len(s)-1000:]
	}
	return s
}

// node is one node as the machine below sees it.
func (c *cluster) node(i int) unumtest.Node {
	n := c.Nodes()[i]
	return unumtest.Node{ID: n.ID, Addr: n.Addr, Dir: n.Dir, Cgroup: n.Cgroup, Pid: n.Pid}
}

// killService sends SIGKILL to the daemon or the file server of a node; false
// if there is none at the moment.
func (c *cluster) killService(i int, name string) bool {
	n := c.node(i)
	pid := n.Daemon()
	if name == "fs" {
		pid = n.FileServer()
	}
	return pid != 0 && syscall.Kill(pid, syscall.SIGKILL) == nil
}

// awaitBeat waits until a node's daemon has registered, counting from now.
func (c *cluster) awaitBeat(i int, done <-chan struct{}) {
	file := filepath.Join(c.Nodes()[i].Dir, "state")
	began := time.Now()
	for time.Since(began) < 5*time.Second {
		if age, ok := supervise.LastBeat(file); ok && age < time.Since(began) {
			return
		}
		select {
		case <-done:
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// awaitBack waits until all daemons are up again.
func (c *cluster) awaitBack() {
	c.t.Helper()
	for end := time.Now().Add(20 * time.Second); c.up() < len(c.Nodes()); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatal("the daemons do not come back")
		}
	}
}

// find lists the processes of a node's world with this name (comm), deputies
// apart.
func (c *cluster) find(i int, comm string) []int {
	var out []int
	for _, p := range c.node(i).Pids() {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p))
		if strings.TrimSpace(string(b)) == comm && !unumtest.IsDeputy(p) {
			out = append(out, p)
		}
	}
	return out
}

// deputies lists a node's deputies of programs with this name.
func (c *cluster) deputies(i int, comm string) []int {
	var out []int
	for _, p := range c.node(i).Pids() {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p))
		if strings.TrimSpace(string(b)) == comm && unumtest.IsDeputy(p) {
			out = append(out, p)
		}
	}
	return out
}

// await waits until f returns exactly n processes.
func (c *cluster) await(what string, n int, f func() []int) []int {
	c.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		l := f()
		if len(l) == n {
			return l
		}
		if time.Now().After(end) {
			c.t.Fatalf("%s: %d processes, want %d", what, len(l), n)
		}
	}
}

// debug asks a daemon what it holds.
func (c *cluster) debug(i int) node.Debug {
	c.t.Helper()
	n := c.node(i)
	file := filepath.Join(n.Dir, "state", "debug.json")
	os.Remove(file)
	syscall.Kill(n.Daemon(), syscall.SIGUSR2)
	var v node.Debug
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if b, err := os.ReadFile(file); err == nil {
			if err := json.Unmarshal(b, &v); err != nil {
				c.t.Fatal(err)
			}
			return v
		}
	}
	c.t.Fatalf("the daemon of %s does not say what it holds", n.ID)
	return v
}

// dump shows what to look at when something went wrong.
func (c *cluster) dump() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, _ := c.unum(ctx, "ps").CombinedOutput()
	c.t.Logf("unum ps:\n%s", clip(string(out)))
	tree, _ := exec.Command("sh", "-c", `for p in /proc/[0-9]*; do grep -qs unum-play-`+c.Name()+` $p/cgroup && {
		echo "$p $(readlink $p/exe) $(tr '\0' ' ' < $p/cmdline | cut -c1-100)"; grep -h "^State\|^NSpid\|^PPid\|^ShdPnd" $p/status | tr '\n' ' '; cut -d' ' -f 3-8 $p/stat; cat $p/wchan; echo; ls -l $p/fd | awk '{print $9,$10,$11}' | tr '\n' ';'; echo; }; done`).Output()
	keepTree := filepath.Join(os.TempDir(), "unum-deaths-failed", strconv.Itoa(os.Getpid()))
	os.MkdirAll(keepTree, 0o700)
	os.WriteFile(filepath.Join(keepTree, strings.ReplaceAll(c.t.Name()[4:], "/", "-")+"-processes"), tree, 0o600)
	for i := range c.Nodes() {
		n := c.node(i)
		if pid := n.Daemon(); pid != 0 {
			syscall.Kill(pid, syscall.SIGUSR2)
		}
	}
	time.Sleep(300 * time.Millisecond)
	keep := filepath.Join(os.TempDir(), "unum-deaths-failed", strconv.Itoa(os.Getpid()))
	for i := range c.Nodes() {
		n := c.node(i)
		for _, name := range []string{"daemon.log", "init.log", "fs.log", "state/debug.txt"} {
			b, _ := os.ReadFile(filepath.Join(n.Dir, name))
			os.MkdirAll(keep, 0o700)
			os.WriteFile(filepath.Join(keep, strings.ReplaceAll(c.t.Name()[4:], "/", "-")+"-"+string(n.ID)+"-"+filepath.Base(name)), b, 0o600)
		}
	}
	c.t.Logf("logs are in %s", keep)
}

// onces runs f for each in parallel and waits.
func onces(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}
