package pipe

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"unum/carry"
	"unum/sys"
)

// holder is a process that has a pipe open.
type holder struct {
	pid         int
	read, write bool
	inherits    bool // through a descriptor that is not close-on-exec, for reading
	inheritsW   bool // the same for writing
}

// holders lists the processes of the world that have the pipe ino open. Not
// seen is a descriptor in flight over a socket.
func holders(env *carry.Env, ino uint64) ([]holder, error) {
	pids, err := env.WorldPids()
	if err != nil {
		return nil, err
	}
	var out []holder
	for _, pid := range pids {
		if h := holds(pid, ino); h.read || h.write {
			out = append(out, h)
		}
	}
	return out, nil
}

// holds says how a process holds a pipe. A process that is gone holds nothing.
func holds(pid int, ino uint64) holder {
	h := holder{pid: pid}
	dir := "/proc/" + strconv.Itoa(pid)
	names, err := sys.ReadDirNames(dir + "/fd")
	if err != nil {
		return h
	}
	want := fmt.Sprintf("pipe:[%d]", ino)
	var buf [64]byte
	for _, n := range names {
		path := dir + "/fd/" + n
		m, err := unix.Readlink(path, buf[:])
		if err != nil || string(buf[:m]) != want {
			continue
		}
		// The mode of the link is the access mode of the description. proc(5)
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil {
			continue
		}
		stays := !closesOnExec(dir + "/fdinfo/" + n)
		if st.Mode&unix.S_IRUSR != 0 {
			h.read = true
			h.inherits = h.inherits || stays
		}
		if st.Mode&unix.S_IWUSR != 0 {
			h.write = true
			h.inheritsW = h.inheritsW || stays
		}
	}
	return h
}

func closesOnExec(fdinfo string) bool {
	b, err := os.ReadFile(fdinfo)
	if err != nil {
		return false
	}
	_, rest, _ := bytes.Cut(b, []byte("flags:"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	v, err := strconv.ParseUint(strings.TrimSpace(string(line)), 8, 64)
	return err == nil && v&unix.O_CLOEXEC != 0
}

// stance is what a process is about, as far as a child that is in execve must
// know it.
type stance int

const (
	active   stance = iota // may do anything
	busy                   // runs, so it may come to rest in a moment
	waiting                // does nothing until its only child ends
	spawning               // suspended in vfork until the child has executed
)

// stanceOf says how pid stands to its descendant. Preconditions: neither is a
// zombie.
func stanceOf(pid, descendant int) stance {
	if !ancestor(pid, descendant) || threads(pid) != 1 {
		return active
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
	f := statFields(pid)
	if err != nil || f == nil {
		return active
	}
	call := strings.Fields(string(b))
	if f[0] == "R" || len(call) < 2 {
		return busy
	}
	nr, err := strconv.Atoi(call[0])
	if err != nil {
		return busy // "running"
	}
	arg, _ := strconv.ParseUint(call[1], 0, 64)
	switch {
	case isWait(nr):
		if onlyChild(pid) {
			return waiting
		}
	case isFork(nr):
		// The flags of clone3 are in memory, but only vfork sleeps like this.
		vfork := nr == sysVfork || nr == unix.SYS_CLONE && arg&unix.CLONE_VFORK != 0 ||
			nr == unix.SYS_CLONE3 && f[0] == "D"
		if !vfork {
			return busy
		}
		if parent(descendant) == pid {
			return spawning
		}
	}
	return active
}

func isWait(nr int) bool {
	return nr == unix.SYS_WAIT4 || nr == unix.SYS_WAITID || nr == unix.SYS_RT_SIGSUSPEND
}

func isFork(nr int) bool {
	return nr == unix.SYS_CLONE || nr == unix.SYS_CLONE3 || nr == sysVfork
}

// onlyChild says if pid has no more than one child that lives.
func onlyChild(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return false // no CONFIG_PROC_CHILDREN: cannot tell
	}
	n := 0
	for _, c := range strings.Fields(string(b)) {
		if c, err := strconv.Atoi(c); err == nil {
			if f := statFields(c); f != nil && f[0] != "Z" && f[0] != "X" {
				n++
			}
		}
	}
	return n <= 1
}

// ancestor says if a process is above another, itself excluded.
func ancestor(pid, of int) bool {
	for p := parent(of); p > 1; p = parent(p) {
		if p == pid {
			return true
		}
	}
	return false
}

func parent(pid int) int {
	if f := statFields(pid); f != nil {
		p, _ := strconv.Atoi(f[1])
		return p
	}
	return 0
}

func threads(pid int) int {
	if f := statFields(pid); f != nil {
		n, _ := strconv.Atoi(f[17])
		return n
	}
	return 0
}

// statFields returns /proc/PID/stat from the state on, nil if there is none.
func statFields(pid int) []string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return nil
	}
	f := strings.Fields(string(b[i+1:]))
	if len(f) < 20 {
		return nil
	}
	return f
}
