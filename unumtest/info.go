package unumtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"unum"
)

// Info is a play's own description of itself, play.json.
type Info struct {
	Name  string
	Pid   int
	Nodes []Node
}

// Node is one node of a play, as the machine below sees it.
type Node struct {
	ID     unum.NodeID
	Addr   string
	Dir    string
	Cgroup string
	Pid    int // of its init
}

// Pids lists the live processes of the node, by their PIDs on the machine.
func (n Node) Pids() []int {
	net, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", n.Pid))
	if err != nil {
		return nil
	}
	return allPids(func(pid int) bool {
		l, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
		return err == nil && l == net
	})
}

// Find lists the processes of the node whose arguments begin like this:
// "unum", "daemon".
func (n Node) Find(argv ...string) []int {
	var out []int
	for _, p := range n.Pids() {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p))
		if strings.HasPrefix(string(b), strings.Join(argv, "\x00")+"\x00") {
			out = append(out, p)
		}
	}
	return out
}

// Daemon is the PID of the node's daemon, 0 if there is none now.
func (n Node) Daemon() int {
	if p := n.Find("unum", "daemon"); len(p) > 0 {
		return p[0]
	}
	return 0
}

// FileServer is the PID of the node's file server process, 0 if none.
func (n Node) FileServer() int {
	if p := n.Find("unum", "fs"); len(p) > 0 {
		return p[0]
	}
	return 0
}

// WorldPid is pid 1 of the node's world.
func (n Node) WorldPid() (int, error) {
	for _, p := range n.Pids() {
		if ids := NSpid(p); len(ids) > 2 && ids[len(ids)-1] == 1 {
			return p, nil
		}
	}
	return 0, fmt.Errorf("node %s has no world", n.ID)
}

// NSpid is a process's PID in each of the PID namespaces it is in, the
// machine's first; nil if it has ended.
func NSpid(pid int) []int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for _, l := range strings.Split(string(b), "\n") {
		if v, ok := strings.CutPrefix(l, "NSpid:"); ok {
			var ids []int
			for _, f := range strings.Fields(v) {
				n, _ := strconv.Atoi(f)
				ids = append(ids, n)
			}
			return ids
		}
	}
	return nil
}

// IsDeputy says whether a process stands in for another: its program is the
// stub.
func IsDeputy(pid int) bool {
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return strings.Contains(exe, "memfd:unum")
}

// allPids lists the processes for which keep says so.
func allPids(keep func(pid int) bool) []int {
	ents, _ := filepath.Glob("/proc/[0-9]*")
	var out []int
	for _, e := range ents {
		if pid, err := strconv.Atoi(filepath.Base(e)); err == nil && keep(pid) {
			out = append(out, pid)
		}
	}
	return out
}
