package unumtest

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"unum"
)

// usage is what a node's daemon and file server hold, and what stands in its
// worlds.
type usage struct {
	fds, threads int // of the daemon
	fsFDs        int // of the file server
	mounts       int // in the node's mount namespace
	worldMounts  int
	processes    int // in the world
	zombies      int
	cgroups      int
	goroutines   int // −1 if the daemon does not tell
	heapInUse    int64
}

func (n Node) usage() (u usage) {
	n0 := n
	count := func(pat string) int { l, _ := filepath.Glob(pat); return len(l) }
	d := n.Daemon()
	u.fds = count(fmt.Sprintf("/proc/%d/fd/*", d))
	u.threads = count(fmt.Sprintf("/proc/%d/task/*", d))
	u.fsFDs = count(fmt.Sprintf("/proc/%d/fd/*", n.FileServer()))
	// Mounts of other plays on the machine come and go here too.
	lines := func(f string) (n int) {
		b, _ := os.ReadFile(f)
		for _, l := range strings.Split(string(b), "\n") {
			if l != "" && (!strings.Contains(l, PlayDir+"/") || strings.Contains(l, filepath.Dir(n0.Dir)+"/")) {
				n++
			}
		}
		return n
	}
	u.mounts = lines(fmt.Sprintf("/proc/%d/mountinfo", n.Pid))
	if p, err := n.WorldPid(); err == nil {
		u.worldMounts = lines(fmt.Sprintf("/proc/%d/mountinfo", p))
	}
	for _, p := range n.Pids() {
		if len(NSpid(p)) < 3 {
			continue
		}
		u.processes++
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p))
		if strings.Contains(string(b), ") Z ") {
			u.zombies++
		}
	}
	for _, h := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		dirs, _ := filepath.Glob(h + n.Cgroup)
		for _, d := range dirs {
			filepath.WalkDir(d, func(p string, e os.DirEntry, err error) error {
				if err == nil && e.IsDir() {
					u.cgroups++
				}
				return nil
			})
		}
	}
	u.goroutines, u.heapInUse = n.runtime()
	return u
}

// runtime asks the daemon for its goroutines and, after a collection, its
// heap in use. A daemon that does not answer has −1.
func (n Node) runtime() (goroutines int, heap int64) {
	pid, file := n.Daemon(), filepath.Join(n.Dir, "state", "debug.json")
	os.Remove(file)
	if pid == 0 || syscall.Kill(pid, syscall.SIGUSR2) != nil {
		return -1, 0
	}
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		b, err := os.ReadFile(file) // it appears whole
		if err != nil {
			continue
		}
		var v struct{ Goroutines, HeapInUse int64 }
		if json.Unmarshal(b, &v) != nil {
			return -1, 0
		}
		return int(v.Goroutines), v.HeapInUse
	}
	return -1, 0
}

func (w *world) usage() map[unum.NodeID]usage {
	m := map[unum.NodeID]usage{}
	for _, n := range w.info.Nodes {
		m[n.ID] = n.usage()
	}
	return m
}

// settled waits until what is counted has stood still for three seconds,
// fifteen at most: an agent without bodies is kept for two.
func (w *world) settled() map[unum.NodeID]usage {
	last, since := w.usage(), time.Now()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); {
		time.Sleep(300 * time.Millisecond)
		now := w.usage()
		if fmt.Sprint(still(now)) != fmt.Sprint(still(last)) {
			since = time.Now()
		}
		last = now
		if time.Since(since) > 3*time.Second {
			break
		}
	}
	return last
}

// still leaves out what never stands still.
func still(m map[unum.NodeID]usage) map[unum.NodeID]usage {
	m = maps.Clone(m)
	for id, u := range m {
		u.heapInUse, u.threads = 0, 0
		m[id] = u
	}
	return m
}

// The soak: thousands of execs in a row, all of them placed. Nothing may be
// wrong, and nothing of the daemons may grow.
func TestManyExecs(t *testing.T) {
	rounds, each := 4, 150
	if Long() {
		rounds, each = 10, 1000
	}
	w := start(t, fmt.Sprintf(`
for i in $(seq %d); do
  UNUM_NODE=elsewhere bt rate %d /bin/true
  UNUM_NODE=elsewhere sh -c 'exit 5'; echo round $i $?
  read line
done
read line
`, rounds, each))
	var at []map[unum.NodeID]usage
	for i := range rounds {
		began := time.Now()
		w.want(5*time.Minute, `^bad 0$`)
		took := time.Since(began)
		w.want(5*time.Second, fmt.Sprintf(`^round %d 5$`, i+1))
		at = append(at, w.settled())
		t.Logf("after %d execs, %v each: %+v", (i+1)*each, (took / time.Duration(each)).Round(10*time.Microsecond), at[i])
		w.say("on")
	}
	compare(t, at[2], at[rounds-1], at[2:])
}

// compare holds what must be the same, and what must show no slope.
func compare(t *testing.T, then, now map[unum.NodeID]usage, all []map[unum.NodeID]usage) {
	t.Helper()
	for id, a := range then {
		b := now[id]
		same := func(what string, x, y int) {
			if x != y {
				t.Errorf("%s: %s were %d and are %d", id, what, x, y)
			}
		}
		same("descriptors of the daemon", a.fds, b.fds)
		same("descriptors of the file server", a.fsFDs, b.fsFDs)
		same("goroutines", a.goroutines, b.goroutines)
		if b.goroutines < 0 {
			t.Errorf("%s: the daemon does not say what it holds", id)
		}
		same("mounts of the node", a.mounts, b.mounts)
		same("mounts of the world", a.worldMounts, b.worldMounts)
		same("processes of the world", a.processes, b.processes)
		same("cgroups", a.cgroups, b.cgroups)
		if b.zombies != 0 {
			t.Errorf("%s: %d zombies", id, b.zombies)
		}
		if b.threads > a.threads+5 {
			t.Errorf("%s: threads grew from %d to %d", id, a.threads, b.threads)
		}
		if grows(all, id, func(u usage) float64 { return float64(u.heapInUse) }) {
			t.Errorf("%s: heap in use grew from %d to %d", id, a.heapInUse, b.heapInUse)
		}
	}
}

// grows says whether every sample is above the one before, by a tenth in all.
func grows(all []map[unum.NodeID]usage, id unum.NodeID, f func(usage) float64) bool {
	for i := 1; i < len(all); i++ {
		if f(all[i][id]) <= f(all[i-1][id]) {
			return false
		}
	}
	return len(all) > 1 && f(all[len(all)-1][id]) > 1.1*f(all[0][id])
}

// Hundreds at once, each of which writes and ends by its own status.
func TestManyAtOnce(t *testing.T) {
	n := 100
	if Long() {
		n = 300
	}
	w := start(t, fmt.Sprintf(`
export UNUM_NODE=elsewhere
sh -c 'exit 5'; echo warm $?
read line
for round in 1 2; do
for i in $(seq %d); do bt wait sh -c "bt records 3 50 x; exit $((i %% 100))" & done > out
wait
grep -c '^x*$' out | sed 's/^/records /'
(for i in $(seq %d); do echo exit $((i %% 100)); done) | sort > should
grep -v '^x*$' out | sort | cmp - should && echo statuses right
read line
done
`, n, n))
	w.want(20*time.Second, `^warm 5`)
	before := w.settled()
	w.say("on")
	for range 2 {
		began := time.Now()
		w.want(90*time.Second, fmt.Sprintf(`^records %d$`, 3*n))
		w.want(5*time.Second, `^statuses right`)
		after := w.settled()
		t.Logf("%d at once took %v: %+v", n, time.Since(began).Round(time.Millisecond), after)
		for id, u := range after {
			if u.processes != before[id].processes || u.zombies != 0 {
				t.Errorf("%s: %d processes and %d zombies; before there were %d\n%s", id, u.processes, u.zombies, before[id].processes, w.processes())
			}
		}
		w.say("on")
	}
}
