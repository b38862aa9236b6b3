package deaths

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/sys"
	"unum/unumtest"
)

// Everything at once: a pipeline, a build, a log with writers on two nodes and
// a shell on a terminal go on again and again, while daemons and file servers
// are killed and packets are lost at random moments. Each result is compared;
// afterwards nothing is left. UNUM_SEED repeats the order of what is done to
// whom, though not the moments that it meets.
func TestEverythingDies(t *testing.T) {
	if !unumtest.Long() {
		t.Skip("long: UNUM_LONG=1, or make test-long")
	}
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("UNUM_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("UNUM_SEED=%d", seed)
	c := start(t, 3)
	project(t, c.dir, 10)
	before := c.calm(nil)
	for _, x := range []struct {
		name  string
		lasts time.Duration
		harms []harm
		// sure: what dies costs no result. Else a job may fail, and says so.
		sure bool
	}{
		{"services", 2 * time.Minute, []harm{killDaemon, killDaemon, killDaemons, killFiles, killServices, losePackets, losePackets}, true},
		{"agents too", time.Minute, []harm{killDaemon, killFiles, losePackets, killAgent, killAgent}, false},
	} {
		t.Run(x.name, func(t *testing.T) {
			c.t = t
			over := make(chan struct{})
			time.AfterFunc(x.lasts, func() { close(over) })
			var done sync.WaitGroup
			counts := make([]int, len(works)+1)
			for i, w := range works {
				done.Go(func() { counts[i] = c.again(w, x.sure, over) })
			}
			if x.sure { // a terminal hangs up with its agent
				term := c.terminal()
				done.Go(func() {
					for n := &counts[len(works)]; !closed(over); *n++ {
						term.round(*n)
					}
					term.leave()
				})
			}
			told := map[string]int{}
			for rnd := rand.New(rand.NewPCG(seed, 0)); !closed(over); {
				time.Sleep(time.Duration(50+rnd.IntN(500)) * time.Millisecond)
				told[x.harms[rnd.IntN(len(x.harms))](c, rnd)]++
				if rnd.IntN(3) > 0 {
					for i := range c.Nodes() {
						c.awaitBeat(i, over)
					}
				}
			}
			done.Wait()
			t.Logf("%v; %d pipelines, %d builds, %d logs, %d dialogues", told, counts[0], counts[1], counts[2], counts[3])
			c.awaitBack()
		})
		if t.Failed() {
			return
		}
	}
	c.t = t
	after := c.calm(before)
	for i := range before {
		if after[i].more(before[i]) {
			t.Errorf("n%d had\n%s\nand has\n%s", i+1, before[i], after[i])
		}
	}
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// harm does something to somebody and says what.
type harm func(*cluster, *rand.Rand) string

func killDaemon(c *cluster, rnd *rand.Rand) string {
	c.killService(rnd.IntN(len(c.Nodes())), "daemon")
	return "daemon"
}

func killDaemons(c *cluster, rnd *rand.Rand) string {
	for _, i := range rnd.Perm(len(c.Nodes())) {
		c.killService(i, "daemon")
	}
	return "all daemons"
}

func killFiles(c *cluster, rnd *rand.Rand) string {
	c.killService(rnd.IntN(len(c.Nodes())), "fs")
	return "file server"
}

// killServices leaves a node without either, in any order.
func killServices(c *cluster, rnd *rand.Rand) string {
	i, both := rnd.IntN(len(c.Nodes())), []string{"daemon", "fs"}
	first := rnd.IntN(2)
	c.killService(i, both[first])
	c.killService(i, both[1-first])
	return "daemon and file server"
}

// losePackets is short enough for nobody to be taken for dead.
func losePackets(c *cluster, rnd *rand.Rand) string {
	c.lose(rnd.IntN(len(c.Nodes())), time.Duration(20+rnd.IntN(130))*time.Millisecond)
	return "packets"
}

// killAgent kills the agent of another node's session. What is younger than a
// second may be about to become a program.
func killAgent(c *cluster, rnd *rand.Rand) string {
	i := rnd.IntN(len(c.Nodes()))
	var up unix.Sysinfo_t
	unix.Sysinfo(&up)
	var agents []int
	for _, p := range c.node(i).Pids() {
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", p))
		if t, err := sys.ReadTask(p); err == nil && t.Pid == t.Sid && t.Pid > 1 && !unum.RangeOf(unum.NodeIndex(i)).Contains(t.Pid) &&
			t.Start/100+2 < uint64(up.Uptime) && strings.HasPrefix(exe, "/memfd:unum-world") {
			agents = append(agents, p)
		}
	}
	if len(agents) == 0 {
		return "no agent"
	}
	syscall.Kill(agents[rnd.IntN(len(agents))], syscall.SIGKILL)
	return "agent"
}

// work is a script, what it writes if nothing goes wrong, and what it never
// writes.
type work struct {
	script, want string
}

var works = []work{
	{fmt.Sprintf(`N=%d; %s | UNUM_NODE=n2 cat | UNUM_NODE=n3 cat | md5sum; echo ${PIPESTATUS[*]}`, 4<<20, source), sum(4<<20) + "\n141 0 0 0 0"},
	{`mkdir -p $D/build && cp $D/*.c $D/Makefile $D/build && D=$D/build
` + rebuild("elsewhere", 10), "same 0"},
	{writers, "6000"},
}

// again does a work until over is closed, and returns how often it was right.
func (c *cluster) again(w work, sure bool, over <-chan struct{}) (right int) {
	for !closed(over) && !c.t.Failed() {
		j := c.run(w.script, "MORE=1")
		select {
		case <-j.done:
		case <-time.After(2 * patience):
			c.t.Errorf("hangs: %s\nso far: %s %s", w.script, clip(j.out.String()), clip(j.err.String()))
			return right
		}
		got := strings.TrimSpace(j.out.String())
		switch {
		case got == w.want && j.cmd.ProcessState.ExitCode() == 0:
			right++
		case j.cmd.ProcessState.ExitCode() == 125 && got == "" && strings.Contains(j.err.String(), "the daemon went away"):
			// It died over the order itself.
		case sure || !strings.Contains(got+j.err.String(), "137") && !strings.Contains(got+j.err.String(), "Killed"):
			c.t.Errorf("%s\nexit %d, output %q, want %q\nstandard error: %s", w.script, j.cmd.ProcessState.ExitCode(), clip(got), w.want, clip(j.err.String()))
			return right
		}
	}
	return right
}

// census is what a node holds when nobody works on it.
type census struct {
	processes          string // of the world
	mounts, cgroups    int
	kept               int    // descriptors of the keeper
	state              string // files that daemons leave to each other
	fds, filesFDs      int
	deputies, sessions int
	goroutines         int
}

func (s census) String() string {
	return fmt.Sprintf("processes %s\n%d mounts, %d cgroups, %d kept descriptors\nstate %s\n%d descriptors, %d of the file server, %d deputies, %d sessions, %d goroutines",
		s.processes, s.mounts, s.cgroups, s.kept, s.state, s.fds, s.filesFDs, s.deputies, s.sessions, s.goroutines)
}

// more says that it holds something that other does not.
func (s census) more(other census) bool {
	numbers := s.fds > other.fds || s.filesFDs > other.filesFDs || s.goroutines > other.goroutines
	s.fds, s.filesFDs, s.goroutines = other.fds, other.filesFDs, other.goroutines
	return numbers || s != other
}

// calm has all services be young, gives each something to do, and waits until
// what the nodes hold stands still, and is no more than before; a minute at
// most, since some things are kept for a while.
func (c *cluster) calm(before []census) []census {
	c.t.Helper()
	for i := range c.Nodes() {
		c.killService(i, "daemon")
		c.killService(i, "fs")
	}
	for i := range c.Nodes() {
		c.awaitBeat(i, nil)
	}
	c.awaitBack()
	c.run(`for i in 1 2 3; do for n in n2 n3; do echo | UNUM_NODE=$n cat; (UNUM_NODE=$n echo; echo) > /dev/null; done; done`).want(20*time.Second, 0, "")
	var last []census
	began := time.Now()
	for same := 0; same < 6; time.Sleep(500 * time.Millisecond) {
		var now []census
		for i := range c.Nodes() {
			now = append(now, c.census(i))
		}
		if same++; !slices.Equal(now, last) {
			same = 0
		}
		more := false
		for i := range before {
			more = more || now[i].more(before[i])
		}
		if more {
			same = 0
		}
		if last = now; time.Since(began) > time.Minute {
			break
		}
	}
	return last
}

func (c *cluster) census(i int) (s census) {
	n := c.node(i)
	count := func(dir string) int { l, _ := os.ReadDir(dir); return len(l) }
	var names []string
	for _, p := range n.Pids() {
		if t, err := sys.ReadTask(p); err == nil && t.Depth > 2 {
			names = append(names, fmt.Sprintf("%s(%c)", t.Comm, t.State))
		}
	}
	slices.Sort(names)
	s.processes = strings.Join(names, " ")
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", n.Pid))
	for l := range strings.Lines(string(b)) {
		if !strings.Contains(l, unumtest.PlayDir+"/") || strings.Contains(l, c.Dir()+"/") {
			s.mounts++
		}
	}
	for _, top := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		dirs, _ := filepath.Glob(top + n.Cgroup)
		for _, d := range dirs {
			filepath.WalkDir(d, func(_ string, e fs.DirEntry, err error) error {
				if err == nil && e.IsDir() {
					s.cgroups++
				}
				return nil
			})
		}
	}
	var state []string
	dir := filepath.Join(n.Dir, "state")
	filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, p)
		switch {
		case err != nil:
			return nil
		case e.IsDir() && strings.HasPrefix(rel, "etcd"):
			return filepath.SkipDir
		case !e.IsDir() && !strings.HasPrefix(rel, "debug"):
			state = append(state, rel)
		}
		return nil
	})
	s.state = strings.Join(state, " ")
	d := c.debug(i)
	s.fds, s.deputies, s.sessions, s.goroutines = d.FDs, d.Deputies+d.Bodies+d.Runs, d.Sessions, d.Goroutines
	s.filesFDs = count(fmt.Sprintf("/proc/%d/fd", n.FileServer()))
	for _, p := range n.Pids() {
		if unumtest.IsDeputy(p) {
			s.kept += count(fmt.Sprintf("/proc/%d/fd", p))
		}
	}
	return s
}
