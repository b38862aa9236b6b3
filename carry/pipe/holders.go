package pipe

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"unum/carry"
	"unum/sys"
)

// holder is a process that has a pipe open.
type holder struct {
	pid         int
	read, write bool
	// Found out by holds only:
	inherits  bool // through a descriptor that is not close-on-exec, for reading
	inheritsW bool // the same for writing
}

// holders lists the processes of the world that have the pipe ino open. Not
// seen is a descriptor in flight over a socket.
func holders(env *carry.Env, ino uint64) ([]holder, error) {
	pids, err := env.WorldPids()
	if err != nil {
		return nil, err
	}
	t := newTable()
	for _, pid := range pids {
		pipes(pid, ino, t.world)
	}
	return t.holders(ino), nil
}

// table says who holds which pipe.
type table struct {
	at    time.Time
	world map[uint64][]held // by inode
	own   map[uint64][]held // this process
}

// held is one descriptor that is a pipe.
type held struct {
	pid         int
	num         string
	read, write bool
}

func newTable() *table { return &table{world: map[uint64][]held{}, own: map[uint64][]held{}} }

// survey lists the pipes of all processes of the world and of this one.
func survey(env *carry.Env) (*table, error) {
	t := newTable()
	pids, err := env.WorldPids()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		pipes(pid, 0, t.world)
	}
	pipes(os.Getpid(), 0, t.own)
	t.at = time.Now()
	return t, nil
}

// tableKey is the key of a table in carry.Proc.Notes.
type tableKey struct{}

// tableAge is how old a look may be for the next descriptor of the same exec. A
// process that has come to hold a pipe since has it from one that is in the
// table, and that one is looked at again (see atRest).
const tableAge = time.Millisecond

// tableFor is survey once for all pipes of an exec.
func tableFor(env *carry.Env, p *carry.Proc) (*table, error) {
	if t, ok := p.Notes[tableKey{}].(*table); ok && time.Since(t.at) < tableAge {
		return t, nil
	}
	t, err := survey(env)
	if err == nil {
		p.Note(tableKey{}, t)
	}
	return t, err
}

// holders lists the processes that hold a pipe.
func (t *table) holders(ino uint64) (out []holder) {
	list := t.world[ino]
	for len(list) > 0 {
		n := 1
		for n < len(list) && list[n].pid == list[0].pid {
			n++
		}
		out = append(out, join(list[0].pid, list[:n]))
		list = list[n:]
	}
	return out
}

// self says how this process holds a pipe.
func (t *table) self(ino uint64) holder { return join(os.Getpid(), t.own[ino]) }

// holds says how a process holds a pipe. A process that is gone holds nothing.
func holds(pid int, ino uint64) holder {
	m := map[uint64][]held{}
	pipes(pid, ino, m)
	h := join(pid, m[ino])
	for _, d := range m[ino] {
		stays := !closesOnExec("/proc/" + strconv.Itoa(pid) + "/fdinfo/" + d.num)
		h.inherits = h.inherits || d.read && stays
		h.inheritsW = h.inheritsW || d.write && stays
	}
	return h
}

// pipes adds the pipes that a process has open to m; only one unless ino is 0.
func pipes(pid int, ino uint64, m map[uint64][]held) {
	dir, err := sys.OpenDir("/proc/" + strconv.Itoa(pid) + "/fd")
	if err != nil {
		return
	}
	defer dir.Close()
	names, _ := dir.Names()
	var buf [64]byte
	for _, n := range names {
		link, err := dir.Readlink(n, buf[:])
		if err != nil {
			continue
		}
		digits, ok := bytes.CutPrefix(link, []byte("pipe:["))
		if !ok {
			continue
		}
		at, err := strconv.ParseUint(string(bytes.TrimSuffix(digits, []byte("]"))), 10, 64)
		if err != nil || ino != 0 && at != ino {
			continue
		}
		// The mode of the link is the access mode of the description. proc(5)
		var st unix.Stat_t
		if dir.Lstat(n, &st) != nil {
			continue
		}
		m[at] = append(m[at], held{pid, n, st.Mode&unix.S_IRUSR != 0, st.Mode&unix.S_IWUSR != 0})
	}
}

// join makes one holder of a process's descriptors.
func join(pid int, list []held) holder {
	h := holder{pid: pid}
	for _, d := range list {
		h.read = h.read || d.read
		h.write = h.write || d.write
	}
	return h
}

func closesOnExec(fdinfo string) bool {
	b, err := sys.ReadProc(fdinfo)
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
	spawning               // suspended in vfork until the child has executed, or a thread of it is
)

// stanceOf says how pid stands to a process that is in execve. Preconditions:
// neither is a zombie.
func stanceOf(pid, caller int) stance {
	above := ancestor(pid, caller)
	switch {
	case !above && !sameProgram(pid, caller):
		return active
	case above && threads(pid) != 1:
		// A runtime that starts a program in one of its threads: what it made
		// for the child it closes when the exec is over.
		if parent(caller) == pid && unborn(caller) {
			return spawning
		}
		return active
	}
	b, err := sys.ReadProc(fmt.Sprintf("/proc/%d/syscall", pid))
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
	case above && isWait(nr):
		if onlyChild(pid) {
			return waiting
		}
	case above && isFork(nr):
		// The flags of clone3 are in memory, but only vfork sleeps like this.
		vfork := nr == sysVfork || nr == unix.SYS_CLONE && arg&unix.CLONE_VFORK != 0 ||
			nr == unix.SYS_CLONE3 && f[0] == "D"
		if !vfork {
			return busy
		}
		if parent(caller) == pid {
			return spawning
		}
	case !isRest(nr):
		return busy // a call that is trapped, or held up, on its way
	}
	return active
}

// sameProgram says if a process executes what the caller does until its exec: if
// both were forked by one shell, say.
func sameProgram(pid, caller int) bool {
	a, err := exeOf(pid)
	if err != nil {
		return false
	}
	b, err := exeOf(caller)
	return err == nil && a == b
}

func exeOf(pid int) (id [2]uint64, err error) {
	var st unix.Stat_t
	err = unix.Stat(fmt.Sprintf("/proc/%d/exe", pid), &st)
	return [2]uint64{uint64(st.Dev), st.Ino}, err
}

// isRest says if a process sleeps in a call for as long as something else
// takes: it has made its arrangements.
func isRest(nr int) bool {
	return isWait(nr) || slices.Contains(restCalls, nr)
}

func isWait(nr int) bool {
	return nr == unix.SYS_WAIT4 || nr == unix.SYS_WAITID || nr == unix.SYS_RT_SIGSUSPEND
}

// restCalls are those, besides the waits for children.
var restCalls = []int{
	unix.SYS_READ, unix.SYS_READV, unix.SYS_WRITE, unix.SYS_WRITEV, unix.SYS_SPLICE, unix.SYS_TEE, unix.SYS_SENDFILE,
	unix.SYS_COPY_FILE_RANGE, sysPoll, unix.SYS_PPOLL, sysSelect, unix.SYS_PSELECT6, sysEpollWait, unix.SYS_EPOLL_PWAIT,
	unix.SYS_EPOLL_PWAIT2, unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, sysPause, unix.SYS_RT_SIGTIMEDWAIT,
	unix.SYS_RECVFROM, unix.SYS_RECVMSG, unix.SYS_SENDTO, unix.SYS_SENDMSG, unix.SYS_ACCEPT, unix.SYS_ACCEPT4,
	unix.SYS_CONNECT, unix.SYS_FLOCK, unix.SYS_FCNTL, unix.SYS_IO_URING_ENTER,
}

func isFork(nr int) bool {
	return nr == unix.SYS_CLONE || nr == unix.SYS_CLONE3 || nr == sysVfork
}

// unborn says if a process still uses its parent's memory: it was made by vfork
// or the like, and is on its way to its exec.
func unborn(pid int) bool {
	p := parent(pid)
	if p <= 1 {
		return false
	}
	same, err := sys.KcmpVM(p, pid)
	return err == nil && same
}

// onlyChild says if pid has no more than one child that lives.
func onlyChild(pid int) bool {
	b, err := sys.ReadProc(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
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
	b, err := sys.ReadProc(fmt.Sprintf("/proc/%d/stat", pid))
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
