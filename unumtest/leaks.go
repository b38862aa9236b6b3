package unumtest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"unum/sys"
)

// Trace remembers of a play what must be gone when it has ended: its
// processes, namespaces, mounts, cgroups and directories. It is taken while
// the play runs, any number of times. Other plays of the machine are not seen.
type Trace struct {
	name string
	ns   map[namespace]bool
	// over is when the play had ended, in clock ticks since the machine's
	// start: what started later is not of it. 0 until Left was asked.
	over uint64
	// id tells namespaces apart; one that fails is a kernel without.
	id func(file string) (uint64, error)
}

// namespace is one of the kernel's. Linux gives the inode number of a dead
// namespace to the next that is made, so link alone does not tell them apart;
// id does, and is 0 where the kernel has none (before 6.18).
type namespace struct {
	link string // "net:[4026532316]"
	id   uint64
}

// Trace begins to watch for leaks.
func (p *Play) Trace() *Trace {
	t := newTrace(p.Name)
	t.Look()
	return t
}

func newTrace(name string) *Trace {
	return &Trace{name: name, ns: map[namespace]bool{}, id: sys.NamespaceID}
}

// Look takes in the namespaces that the play has now.
func (t *Trace) Look() {
	own := map[string]bool{}
	for _, f := range namespaces(os.Getpid()) {
		l, _ := os.Readlink(f)
		own[l] = true
	}
	for _, pid := range t.processes() {
		for _, f := range namespaces(pid) {
			if ns, ok := t.namespace(f); ok && !own[ns.link] {
				t.ns[ns] = true
			}
		}
	}
}

// namespaces are the files of a process's namespaces.
func namespaces(pid int) []string {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/ns/*", pid))
	return files
}

func (t *Trace) namespace(file string) (ns namespace, ok bool) {
	var err error
	if ns.link, err = os.Readlink(file); err != nil {
		return ns, false
	}
	ns.id, _ = t.id(file)
	return ns, true
}

// holds says whether a file of /proc/PID/ns is a namespace of the play. Where
// the kernel has no ids, the number of one that died may have gone to another
// play, or to a process younger than the end of this one.
func (t *Trace) holds(pid int, file string) (ns namespace, yes bool) {
	link, err := os.Readlink(file)
	if err != nil {
		return ns, false
	}
	for ns := range t.ns {
		if ns.link != link {
			continue
		}
		// Read again: the process may be another by now.
		if now, ok := t.namespace(file); ok && now == ns {
			if ns.id != 0 || t.of(pid) || !ofAnyPlay(pid) && startTime(pid) <= t.over {
				return ns, true
			}
		}
	}
	return ns, false
}

// named says whether s has what, and not as the beginning of a longer name.
func named(s, what string) bool {
	for {
		i := strings.Index(s, what)
		if i < 0 {
			return false
		}
		s = s[i+len(what):]
		if s == "" || !strings.Contains("-0123456789abcdefghijklmnopqrstuvwxyz", s[:1]) {
			return true
		}
	}
}

// of says whether a process is in the play's cgroups, or has its directory
// among its arguments.
func (t *Trace) of(pid int) bool {
	cg, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if named(string(cg), "/unum-play-"+t.name) {
		return true
	}
	cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.Contains(string(cmd), PlayDir+"/"+t.name+"/")
}

func ofAnyPlay(pid int) bool {
	cg, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return strings.Contains(string(cg), "/unum-play-")
}

func (t *Trace) processes() []int {
	return allPids(func(pid int) bool { return t.of(pid) && !ended(pid) })
}

// ended says whether a process is dead and only waits for pid 1, to which it
// was left: in a container that may be a program that never asks.
func ended(pid int) bool {
	f := stat(pid)
	return len(f) > 1 && f[0] == "Z" && f[1] == "1"
}

// stat returns the fields of /proc/PID/stat from the third on, proc(5).
func stat(pid int) []string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
}

// startTime is when a process started, in clock ticks since the machine's
// start: field 22 of /proc/PID/stat, proc(5). 0 if it has ended.
func startTime(pid int) uint64 {
	f := stat(pid)
	if len(f) < 20 {
		return 0
	}
	n, _ := strconv.ParseUint(f[19], 10, 64)
	return n
}

// ticks is the time now as startTime counts it. USER_HZ is 100 everywhere.
func ticks() uint64 {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return uint64(ts.Nano() / int64(time.Second/100))
}

// Left says what is left of a play that has ended, waiting up to grace for
// the kernel to finish; nil if nothing.
func (t *Trace) Left(grace time.Duration) []string { return t.wait(grace, t.left) }

// Living is Left, of processes and namespaces alone: a play that was killed
// leaves directories and cgroups for the next to clear.
func (t *Trace) Living(grace time.Duration) []string { return t.wait(grace, t.living) }

func (t *Trace) wait(grace time.Duration, what func() []string) []string {
	if t.over == 0 {
		t.over = ticks()
	}
	for end := time.Now().Add(grace); ; time.Sleep(20 * time.Millisecond) {
		left := what()
		if len(left) == 0 || time.Now().After(end) {
			return left
		}
	}
}

func (t *Trace) living() []string {
	var left []string
	add := func(f string, a ...any) { left = append(left, fmt.Sprintf(f, a...)) }
	for _, pid := range t.processes() {
		cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		add("process %d: %s", pid, strings.ReplaceAll(string(cmd), "\x00", " "))
	}
	for _, pid := range allPids(func(pid int) bool { return !ended(pid) }) {
		for _, f := range namespaces(pid) {
			if ns, yes := t.holds(pid, f); yes {
				add("namespace %s (%d), held by process %d", ns.link, ns.id, pid)
			}
		}
	}
	return left
}

func (t *Trace) left() []string {
	left := t.living()
	add := func(f string, a ...any) { left = append(left, fmt.Sprintf(f, a...)) }
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for l := range strings.Lines(string(mounts)) {
		if named(l, PlayDir+"/"+t.name) || named(l, "unum-play-"+t.name) {
			add("mount %s", strings.TrimSpace(l))
		}
		// A namespace that is bound to a name needs no process: "… 4:0 net:[N] /name …".
		if f := strings.Fields(l); len(f) > 4 && strings.Contains(f[3], ":[") {
			if ns, ok := t.namespace(f[4]); ok && ns.id != 0 && t.ns[ns] {
				add("namespace %s, bound to %s", ns.link, f[4])
			}
		}
	}
	for _, pat := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/", "/sys/fs/cgroup/*/*/"} {
		dirs, _ := filepath.Glob(pat + "unum-play-" + t.name)
		for _, d := range dirs {
			add("cgroup %s", d)
		}
	}
	if _, err := os.Lstat(filepath.Join(PlayDir, t.name)); err == nil {
		add("directory %s", filepath.Join(PlayDir, t.name))
	}
	return left
}
