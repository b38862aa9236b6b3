// Package cgroup gives a node its control group: a cap on processors, and a
// registry of the processes that live in its world.
//
// A group has one name, such as "unum-play-a/n1", in every hierarchy in which
// it exists. The registry is the v2 hierarchy where there is one, even without
// controllers, because a process can be born into it (CLONE_INTO_CGROUP, Linux
// 5.7); else a v1 hierarchy, which a process enters by itself before its exec.
// The cap is cpu.max of v2 where v2 has the cpu controller, else the CFS quota
// of v1 (cgroups(7), Documentation/admin-guide/cgroup-v2.rst).
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"unum"
)

// Period is the length of one accounting period of the cap. The kernel's
// usual 100 ms would let a node run at full speed for tens of milliseconds and
// then stop, which a placed command of a few milliseconds would feel.
const Period = 10 * time.Millisecond

const root = "/sys/fs/cgroup"

// layout is how the machine has mounted its hierarchies.
type layout struct {
	v2       string // mount point of v2, or ""
	v2cpu    bool   // v2 has the cpu controller
	cpu      string // mount point of the v1 cpu hierarchy, or ""
	registry string // mount point of the hierarchy that registers processes
}

func detect() layout {
	var l layout
	switch cgroups.Mode() {
	case cgroups.Unified:
		l.v2 = root
	case cgroups.Hybrid:
		l.v2 = filepath.Join(root, "unified")
	}
	if l.v2 != "" {
		b, _ := os.ReadFile(filepath.Join(l.v2, "cgroup.controllers"))
		l.v2cpu = slices.Contains(strings.Fields(string(b)), "cpu")
		l.registry = l.v2
	}
	if l.v2 != root {
		if isDir(filepath.Join(root, "cpu")) {
			l.cpu = filepath.Join(root, "cpu")
		}
		for _, name := range []string{"freezer", "pids", "memory", "cpu"} {
			if l.registry == "" && isDir(filepath.Join(root, name)) {
				l.registry = filepath.Join(root, name)
			}
		}
	}
	return l
}

// A Group is one control group in all its hierarchies. Its methods may be
// called from any goroutine.
type Group struct {
	l    layout
	name string
	dirs []string // the registry's first
}

// Create makes the group, or takes the existing one of that name, and caps it
// at cpus processors; 0 is no cap. The error wraps unum.ErrNoFeature where the
// machine has no cgroups, or none that can cap.
func Create(name string, cpus float64) (*Group, error) {
	g, err := create(detect(), name, cpus)
	if err != nil {
		return nil, &unum.Error{Op: "make cgroup", Path: name, Err: err}
	}
	return g, nil
}

func create(l layout, name string, cpus float64) (*Group, error) {
	if l.registry == "" {
		return nil, fmt.Errorf("no cgroup hierarchy is mounted below %s: %w", root, unum.ErrNoFeature)
	}
	g := named(l, name, cpus > 0)
	for _, d := range g.dirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	if cpus <= 0 {
		return g, nil
	}
	period := uint64(Period / time.Microsecond)
	quota := max(int64(cpus*float64(period)), 1000) // the kernel takes no less than 1 ms
	var err error
	switch {
	case l.v2cpu:
		_, err = cgroup2.NewManager(l.v2, "/"+name, &cgroup2.Resources{
			CPU: &cgroup2.CPU{Max: cgroup2.NewCPUMax(&quota, &period)}})
	case l.cpu != "":
		err = cgroup1.NewCpu(filepath.Dir(l.cpu)).Create(name,
			&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}})
	default:
		err = fmt.Errorf("no hierarchy has the cpu controller, so %g processors cannot be kept to: %w", cpus, unum.ErrNoFeature)
	}
	if err != nil {
		return nil, errors.Join(err, g.Remove(context.Background()))
	}
	return g, nil
}

// Claim makes the group of a name and holds it until the returned file is closed
// or its process ends. The error wraps unum.ErrExists if somebody holds it
// already, in whatever namespaces and below whatever root: the lock is on the
// group's directory, which is one for all.
func Claim(name string) (*os.File, error) {
	l := detect()
	f, err := claim(l, name)
	if err != nil {
		return nil, &unum.Error{Op: "claim cgroup", Path: name, Err: err}
	}
	return f, nil
}

func claim(l layout, name string) (*os.File, error) {
	for {
		g, err := create(l, name, 0)
		if err != nil {
			return nil, err
		}
		f, err := os.Open(g.Dir())
		if err != nil {
			if gone(err) {
				continue
			}
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = unum.ErrExists
		}
		if err != nil {
			f.Close()
			return nil, err
		}
		// One that was removed before it was locked has a successor.
		mine, err1 := f.Stat()
		now, err2 := os.Stat(g.Dir())
		if err1 == nil && err2 == nil && os.SameFile(mine, now) {
			return f, nil
		}
		f.Close()
	}
}

// Open names a group without making it.
func Open(name string) *Group { return open(detect(), name) }

func open(l layout, name string) *Group {
	return named(l, name, l.cpu != "" && isDir(filepath.Join(l.cpu, name)))
}

// named is the group in the hierarchies in which it is to be. In that of the v1
// cpu controller it is only if capped: there each level costs every switch from
// one process to the next some percent.
func named(l layout, name string, capped bool) *Group {
	g := &Group{l: l, name: name}
	in := []string{l.registry, l.v2}
	if capped && !l.v2cpu {
		in = append(in, l.cpu)
	}
	for _, d := range in {
		if d = filepath.Join(d, name); filepath.IsAbs(d) && !slices.Contains(g.dirs, d) {
			g.dirs = append(g.dirs, d)
		}
	}
	return g
}

// Name is what Open takes.
func (g *Group) Name() string { return g.name }

// Dir is the group's directory in the registry.
func (g *Group) Dir() string { return filepath.Join(g.l.registry, g.name) }

// Child makes a group below this one, in the registry only: for the cap its
// processes stay in g.
func (g *Group) Child(name string) (*Group, error) {
	l := layout{v2: g.l.v2, registry: g.l.registry}
	c := open(l, filepath.Join(g.name, name))
	if err := os.MkdirAll(c.Dir(), 0o755); err != nil {
		return nil, &unum.Error{Op: "make cgroup", Path: c.name, Err: err}
	}
	return c, nil
}

// BirthDir opens the directory for CLONE_INTO_CGROUP. It returns nil where
// the registry is v1: the child calls Enrol then.
func (g *Group) BirthDir() (*os.File, error) {
	if g.l.registry != g.l.v2 {
		return nil, nil
	}
	fd, err := unix.Open(g.Dir(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &unum.Error{Op: "open cgroup", Path: g.name, Err: err}
	}
	return os.NewFile(uintptr(fd), g.Dir()), nil
}

// Enrol moves a process into the group; 0 is the caller.
func (g *Group) Enrol(pid int) error {
	for _, d := range g.dirs {
		if err := os.WriteFile(filepath.Join(d, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return &unum.Error{Op: "enter cgroup", Path: g.name, Err: err}
		}
	}
	return nil
}

// Procs lists the processes of the group and of all groups below it, by their
// number in the caller's PID namespace; those that have none are left out.
func (g *Group) Procs() ([]int, error) {
	var pids []int
	err := walk(g.Dir(), func(dir string) error {
		b, err := readAll(filepath.Join(dir, "cgroup.procs"))
		if gone(err) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, f := range strings.Fields(string(b)) {
			if n, _ := strconv.Atoi(f); n > 0 {
				pids = append(pids, n)
			}
		}
		return nil
	})
	if err != nil {
		return nil, &unum.Error{Op: "read cgroup", Path: g.name, Err: err}
	}
	return pids, nil
}

// Populated says whether the group, or one below it, has processes. On v2 it
// sees those of all PID namespaces, on v1 those that the caller can name.
func (g *Group) Populated() bool {
	if g.l.registry == g.l.v2 {
		b, _ := os.ReadFile(filepath.Join(g.Dir(), "cgroup.events"))
		return strings.Contains(string(b), "populated 1")
	}
	pids, _ := g.Procs()
	return len(pids) > 0
}

// readAll is os.ReadFile without what that does for files that can be waited
// for. A short read is not the end of a list of processes.
func readAll(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b := make([]byte, 0, 1024)
	for {
		n, err := unix.Read(fd, b[len(b):cap(b)])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, err
		case n == 0:
			return b, nil
		default:
			b = b[:len(b)+n]
		}
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
	}
}

// Kill kills what is in the group and below, once: cgroup.kill (Linux 5.14)
// catches also what is being forked; on v1 the members of the moment.
func (g *Group) Kill() error {
	if g.l.registry == g.l.v2 {
		err := os.WriteFile(filepath.Join(g.Dir(), "cgroup.kill"), []byte("1"), 0)
		if err == nil || gone(err) && !isDir(g.Dir()) {
			return nil
		}
	}
	pids, err := g.Procs()
	for _, pid := range pids {
		unix.Kill(pid, unix.SIGKILL)
	}
	return err
}

// Remove removes the group with all groups below it. Members that are dying
// are waited for until ctx ends, at most 5 s; the living are not killed.
// Removing what is not there is no error.
func (g *Group) Remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for _, d := range g.dirs {
		for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
			err := rmdirAll(d)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EBUSY) {
				return &unum.Error{Op: "remove cgroup", Path: d, Err: err}
			}
			select {
			case <-ctx.Done():
				return &unum.Error{Op: "remove cgroup", Path: d, Err: err}
			case <-time.After(wait):
			}
		}
	}
	return nil
}

// rmdirAll removes dir and the directories below it, deepest first.
func rmdirAll(dir string) error {
	var dirs []string
	if err := walk(dir, func(d string) error { dirs = append(dirs, d); return nil }); err != nil {
		return err
	}
	for _, d := range slices.Backward(dirs) {
		if err := unix.Rmdir(d); err != nil && !gone(err) {
			return &fs.PathError{Op: "rmdir", Path: d, Err: err}
		}
	}
	return nil
}

// walk calls fn for dir and every directory below it, parents first. What
// goes away meanwhile is passed over.
func walk(dir string, fn func(string) error) error {
	// The usual group has none below it, which its link count tells.
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err == nil && st.Nlink == 2 {
		return fn(dir)
	}
	return filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if gone(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if !e.IsDir() {
			return nil
		}
		return fn(p)
	})
}

// gone says that a group was removed: its files then give ENODEV.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// Below lists the groups right below the root of any hierarchy whose name
// begins with prefix.
func Below(prefix string) []string {
	l := detect()
	var names []string
	for _, d := range []string{l.registry, l.v2, l.cpu} {
		if d == "" {
			continue
		}
		found, _ := filepath.Glob(filepath.Join(d, prefix+"*"))
		for _, f := range found {
			if n := filepath.Base(f); isDir(f) && !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	return names
}
