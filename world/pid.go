package world

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"unum"
)

// HostPids lists the processes of the world, pid 1 and those of containers
// inside too, by their number in the daemon's PID namespace.
func (w *World) HostPids() ([]int, error) { return w.cgroup.Procs() }

// ToHost translates a PID or thread id of the world into the daemon's PID
// namespace; unum.ErrNoProcess if there is no such process now.
func (w *World) ToHost(p unum.Pid) (int, error) {
	pid, err := nsPid(int(w.pidns.Fd()), nsGetPidFromPidns, int(p))
	if errors.Is(err, unix.ENOTTY) {
		pid, err = w.scan(p)
	}
	if err == nil && pid != 0 {
		return pid, nil
	}
	return 0, noProcess(p, err)
}

// ToWorld translates a PID or thread id of the daemon's namespace;
// unum.ErrNoProcess if it is not in the world.
func (w *World) ToWorld(hostPid int) (unum.Pid, error) {
	p, err := nsPid(int(w.pidns.Fd()), nsGetPidInPidns, hostPid)
	if errors.Is(err, unix.ENOTTY) {
		p, err = w.inWorld(hostPid)
	}
	if err == nil && p != 0 {
		return unum.Pid(p), nil
	}
	return 0, noProcess(unum.Pid(hostPid), err)
}

func noProcess(p unum.Pid, err error) error {
	if err == nil || errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrNotExist) {
		err = unum.ErrNoProcess
	}
	return &unum.Error{Op: "translate pid", Pid: p, Err: err}
}

// scan finds p among the members of the registry, for kernels before 6.11.
// It remembers them all, and trusts what it remembers only after a look.
func (w *World) scan(p unum.Pid) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if h, ok := w.hosts[p]; ok {
		if q, err := w.inWorld(h); err == nil && q == int(p) {
			return h, nil
		}
	}
	pids, err := w.HostPids()
	if err != nil {
		return 0, err
	}
	clear(w.hosts)
	for _, h := range pids {
		// Threads have numbers too, and a caller may ask for one.
		tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", h))
		for _, t := range tasks {
			tid, _ := strconv.Atoi(t.Name())
			if q, err := w.inWorld(tid); err == nil {
				w.hosts[unum.Pid(q)] = tid
			}
		}
	}
	if h, ok := w.hosts[p]; ok {
		return h, nil
	}
	return 0, unix.ESRCH
}

// inWorld reads a task's number in the world from /proc, for kernels before
// 6.11. Its namespaces are the daemon's, the world's, and perhaps deeper ones;
// that the second is this world's shows in pid 1 being its ancestor's: the
// registry.
func (w *World) inWorld(hostPid int) (int, error) {
	ns, err := nsPids(hostPid)
	if err != nil {
		return 0, err
	}
	if len(ns) < 2 || !w.member(hostPid) {
		return 0, unix.ESRCH
	}
	return ns[1], nil
}

// member says whether a task is in the world's cgroup or below it.
func (w *World) member(hostPid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", hostPid))
	if err != nil {
		return false
	}
	name := "/" + w.cgroup.Name()
	for line := range bytes.Lines(b) {
		_, path, ok := bytes.Cut(bytes.TrimSpace(line), []byte(":"))
		if _, path, ok = bytes.Cut(path, []byte(":")); !ok {
			continue
		}
		if string(path) == name || bytes.HasPrefix(path, []byte(name+"/")) {
			return true
		}
	}
	return false
}

// nsPids reads a task's numbers from the reader's PID namespace down to its
// own (NSpid of proc(5)).
func nsPids(hostPid int) ([]int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", hostPid))
	if err != nil {
		return nil, err
	}
	_, rest, ok := bytes.Cut(b, []byte("\nNSpid:"))
	if !ok {
		return nil, unix.ESRCH
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	var pids []int
	for _, f := range bytes.Fields(line) {
		n, err := strconv.Atoi(string(f))
		if err != nil {
			return nil, err
		}
		pids = append(pids, n)
	}
	return pids, nil
}

// zombie says that a process has ended and is not reaped yet.
func zombie(hostPid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", hostPid))
	return err != nil || bytes.Contains(b, []byte("\nState:\tZ"))
}
