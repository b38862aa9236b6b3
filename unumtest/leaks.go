package unumtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Trace remembers of a play what must be gone when it has ended: its
// processes, namespaces, mounts, cgroups and directories. It is taken while
// the play runs, any number of times.
type Trace struct {
	name string
	ns   map[string]bool
}

// Trace begins to watch for leaks.
func (p *Play) Trace() *Trace {
	t := &Trace{name: p.Name, ns: map[string]bool{}}
	t.Look()
	return t
}

// Look takes in the namespaces that the play has now.
func (t *Trace) Look() {
	own := namespaces(os.Getpid())
	for _, pid := range t.processes() {
		for ns := range namespaces(pid) {
			if !own[ns] {
				t.ns[ns] = true
			}
		}
	}
}

func namespaces(pid int) map[string]bool {
	m := map[string]bool{}
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/ns/*", pid))
	for _, l := range links {
		if n, err := os.Readlink(l); err == nil {
			m[n] = true
		}
	}
	return m
}

// processes are those in the play's cgroups, or with its directory among
// their arguments.
func (t *Trace) processes() []int {
	return allPids(func(pid int) bool {
		cg, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if strings.Contains(string(cg), "/unum-play-"+t.name) {
			return true
		}
		cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		return strings.Contains(string(cmd), PlayDir+"/"+t.name+"/")
	})
}

// Left says what is left of a play that has ended, waiting up to grace for
// the kernel to finish; nil if nothing.
func (t *Trace) Left(grace time.Duration) []string {
	for end := time.Now().Add(grace); ; time.Sleep(20 * time.Millisecond) {
		left := t.left()
		if len(left) == 0 || time.Now().After(end) {
			return left
		}
	}
}

func (t *Trace) left() []string {
	var left []string
	add := func(f string, a ...any) { left = append(left, fmt.Sprintf(f, a...)) }
	for _, pid := range t.processes() {
		cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		add("process %d: %s", pid, strings.ReplaceAll(string(cmd), "\x00", " "))
	}
	for _, pid := range allPids(func(int) bool { return true }) {
		for ns := range namespaces(pid) {
			if t.ns[ns] {
				add("namespace %s, held by process %d", ns, pid)
			}
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for _, l := range strings.Split(string(mounts), "\n") {
		if strings.Contains(l, PlayDir+"/"+t.name) || strings.Contains(l, "unum-play-"+t.name) {
			add("mount %s", l)
		}
	}
	for _, pat := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/", "/sys/fs/cgroup/*/*/"} {
		dirs, _ := filepath.Glob(pat + "unum-play-" + t.name + "*")
		for _, d := range dirs {
			add("cgroup %s", d)
		}
	}
	if _, err := os.Lstat(filepath.Join(PlayDir, t.name)); err == nil {
		add("directory %s", filepath.Join(PlayDir, t.name))
	}
	return left
}
