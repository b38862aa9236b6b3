package rexec

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"unum"
	"unum/sched"
	"unum/seccomp"
	"unum/sys"
)

// caller is a process that waits in an exec which may be placed.
type caller struct {
	n        *seccomp.Notif
	task     *sys.Task
	path     string // as the caller wrote it
	real     string // resolved, in the world
	ino      uint64 // of real
	argv     []string
	env      []string
	argvAddr uint64
	envAddr  uint64
	nul      uint64 // address of the zero byte after the path
	dest     sched.Decision
	holding  <-chan error // a hold that was begun
	held     bool         // by the tracer: release answers it
}

const hintKey = "UNUM_NODE="

// parentOf returns the world's number of a task's parent, 0 if it is outside.
func parentOf(t *sys.Task) unum.Pid {
	pid, err := sys.WorldPid(t.Ppid)
	if err != nil {
		return 0
	}
	return pid
}

// hint reads what an exec's new environment asks for; "" if that is this node,
// or nothing.
func (h *Homes) hint(n *seccomp.Notif) string {
	env := n.Args[2]
	if n.Nr == unix.SYS_EXECVEAT {
		env = n.Args[3]
	}
	if hint := readHint(n.Tid, env); hint != sched.HintHere && hint != string(h.cfg.Node) {
		return hint
	}
	return ""
}

// look decides about an exec as far as it is cheap. It returns nil for an exec
// that runs here, with a reason if there is more to say than that nothing else
// was asked for.
func (h *Homes) look(n *seccomp.Notif, hint string) (*caller, string) {
	if n.Arch != seccomp.ArchX86_64 {
		return nil, "a 32-bit program's exec stays home"
	}
	c := &caller{n: n}
	pathAddr := n.Args[0]
	c.argvAddr, c.envAddr = n.Args[1], n.Args[2]
	if n.Nr == unix.SYS_EXECVEAT {
		pathAddr, c.argvAddr, c.envAddr = n.Args[1], n.Args[2], n.Args[3]
		if int32(n.Args[0]) != unix.AT_FDCWD || n.Args[4] != 0 {
			return nil, "an exec of an open file stays home"
		}
	}
	switch {
	case hint == "":
		return nil, ""
	case hint == sched.HintAuto && h.cfg.Alone():
		return nil, "no other node is up"
	}
	var err error
	if c.path, err = sys.ReadString(n.Tid, pathAddr, unix.PathMax); err != nil {
		return nil, ""
	}
	c.nul = pathAddr + uint64(len(c.path))
	quick := sched.Request{Path: c.path, Hint: hint, Caller: h.cfg.Node, Home: h.cfg.Node}
	if sched.NeedsArgv(c.path) {
		if c.argv, err = readVector(n.Tid, c.argvAddr); err != nil {
			return nil, ""
		}
		quick.Argv = c.argv
	}
	if d, ok := h.cfg.Quick(quick); ok {
		return nil, d.Why
	}
	if why := h.resolve(c); why != "" {
		return nil, why
	}
	if c.task, err = sys.ReadTask(n.Tid); err != nil {
		return nil, ""
	}
	if c.argv == nil {
		if c.argv, err = readVector(n.Tid, c.argvAddr); err != nil {
			return nil, ""
		}
	}
	c.dest = h.cfg.Place(sched.Request{
		Pid: c.task.Pid, Parent: parentOf(c.task), Path: c.path, Argv: c.argv, Hint: hint,
		Caller: h.cfg.Node, Home: h.cfg.Node,
		Guest:       h.foreign(c.task.Sid),
		Avoid:       h.avoid(c.task),
		Interactive: c.task.TTY != 0,
	})
	if c.dest.Err != nil {
		h.log.Info("a wish cannot be met", "pid", c.task.Pid, "node", hint, "err", c.dest.Err)
	}
	if c.dest.Node == h.cfg.Node {
		if c.dest.Observe {
			h.observe(c.task)
		}
		return nil, c.dest.Why
	}
	return c, ""
}

// reread fills in what look reads of an exec, without deciding.
func (h *Homes) reread(c *caller) error {
	n := c.n
	pathAddr := n.Args[0]
	c.argvAddr, c.envAddr = n.Args[1], n.Args[2]
	if n.Nr == unix.SYS_EXECVEAT {
		pathAddr, c.argvAddr, c.envAddr = n.Args[1], n.Args[2], n.Args[3]
	}
	var err error
	if c.path, err = sys.ReadString(n.Tid, pathAddr, unix.PathMax); err != nil {
		return err
	}
	c.nul = pathAddr + uint64(len(c.path))
	c.argv, err = readVector(n.Tid, c.argvAddr)
	return err
}

// foreign says whether a session began on another node.
func (h *Homes) foreign(sid unum.Pid) bool {
	i, ok := unum.IndexOf(sid)
	return ok && i != h.cfg.Index
}

// avoid lists the nodes that hold the process's session or its own number, or
// may have to hold those of its orphans.
func (h *Homes) avoid(t *sys.Task) (out []unum.NodeID) {
	for _, pid := range [2]unum.Pid{t.Sid, t.Pid} {
		if i, ok := unum.IndexOf(pid); ok && i != h.cfg.Index {
			if id, ok := h.cfg.NodeAt(i); ok {
				out = append(out, id)
			}
		}
	}
	for _, id := range h.above(t) {
		if id != h.cfg.Node {
			out = append(out, id)
		}
	}
	return out
}

// ownPlaces are directories in which each node has its own files: a program
// there is not the same one on another node.
var ownPlaces = []string{"/proc/", "/sys/", "/dev/", "/run/unum/"}

// resolve finds the file, as the caller's world sees it, and says why it stays
// home; an error of any kind is left to the kernel to tell.
func (h *Homes) resolve(c *caller) string {
	full := c.path
	if full == "" {
		return "an empty path"
	}
	if !path.IsAbs(full) {
		cwd, err := os.Readlink("/proc/" + strconv.Itoa(c.n.Tid) + "/cwd")
		if err != nil || !path.IsAbs(cwd) {
			return "its working directory has no name"
		}
		full = cwd + "/" + full
	}
	fd, err := unix.Openat2(int(h.cfg.WorldRoot.Fd()), full, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT,
	})
	if err != nil {
		return err.Error()
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err.Error()
	}
	self := "/proc/self/fd/" + strconv.Itoa(fd)
	if c.real, err = os.Readlink(self); err != nil {
		return err.Error()
	}
	c.ino = st.Ino
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 == 0:
		return "not an executable file"
	case st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0:
		return c.real + " is setuid or setgid"
	}
	for _, own := range ownPlaces {
		if strings.HasPrefix(c.real, own) {
			return c.real + " is this node's own"
		}
	}
	if n, err := unix.Getxattr(self, "security.capability", nil); err == nil && n > 0 {
		return c.real + " has file capabilities"
	}
	return ""
}

// readPointers reads a NULL-terminated array, at most limit of it.
func readPointers(pid int, at uint64, limit int) (ptrs []uint64, end bool, err error) {
	if at == 0 {
		return nil, true, nil
	}
	buf := make([]byte, 8*limit)
	n, err := sys.ReadMem(pid, at, buf)
	if err != nil {
		// The array may end near the end of its mapping.
		n = min(len(buf), int(4096-at%4096))
		if n, err = sys.ReadMem(pid, at, buf[:n]); err != nil {
			return nil, false, err
		}
	}
	for i := 0; i+8 <= n; i += 8 {
		p := binary.LittleEndian.Uint64(buf[i:])
		if p == 0 {
			return ptrs, true, nil
		}
		ptrs = append(ptrs, p)
	}
	if len(ptrs) == 0 {
		return nil, false, unix.EFAULT
	}
	return ptrs, false, nil
}

// maxStrings is what the kernel would take at most (3/4 of 8 MiB of stack).
const maxStrings = 6 << 20

// readVector reads argv or envp. The strings usually lie close together, in one
// or two places (the stack and the heap); each place is read in one piece.
func readVector(pid int, at uint64) ([]string, error) {
	var ptrs []uint64
	for {
		more, end, err := readPointers(pid, at, 512)
		if err != nil {
			return nil, err
		}
		ptrs = append(ptrs, more...)
		if end {
			break
		}
		at += uint64(8 * len(more))
		if len(ptrs) > maxStrings/8 {
			return nil, unix.E2BIG
		}
	}
	if len(ptrs) == 0 {
		return nil, nil
	}
	out := make([]string, 0, len(ptrs))
	places := placesOf(ptrs)
	for i := range places {
		places[i].read(pid)
	}
	for _, p := range ptrs {
		i, _ := slices.BinarySearchFunc(places, p, func(a place, p uint64) int { return cmp.Compare(a.end, p) })
		if text, ok := places[i].text(p); ok {
			out = append(out, text)
			continue
		}
		s, err := sys.ReadString(pid, p, maxStrings)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// place is a stretch of memory with strings in it.
type place struct {
	from, end uint64 // of the first byte of the first and of the last string; it is read to the end of the page
	b         []byte
}

// placeGap is how far apart strings may begin to be read in one piece.
const placeGap = 16 << 10

// placesOf puts pointers into places, in the order of addresses.
func placesOf(ptrs []uint64) (out []place) {
	sorted := slices.Clone(ptrs)
	slices.Sort(sorted)
	for _, p := range sorted {
		if n := len(out); n > 0 && p-out[n-1].end <= placeGap && p-out[n-1].from < maxStrings {
			out[n-1].end = p
		} else {
			out = append(out, place{from: p, end: p})
		}
	}
	return out
}

func (a *place) read(pid int) {
	a.b = make([]byte, a.end&^4095+4096-a.from)
	n, _ := sys.ReadMem(pid, a.from, a.b)
	a.b = a.b[:max(n, 0)]
}

// text returns the string at p, if all of it was read.
func (a *place) text(p uint64) (string, bool) {
	if o := p - a.from; o < uint64(len(a.b)) {
		if j := bytes.IndexByte(a.b[o:], 0); j >= 0 {
			return string(a.b[o : o+uint64(j)]), true
		}
	}
	return "", false
}

// gather reads what the new process must be like. Its errors make the exec
// stay home; they name what stands in the way.
func (h *Homes) gather(c *caller) (*Spec, error) {
	t := c.task
	dir := "/proc/" + strconv.Itoa(t.Tgid)
	switch {
	case t.Tracer != 0:
		return nil, fmt.Errorf("it is traced by process %d: %w", t.Tracer, unum.ErrStaysHome)
	case t.Filters > h.cfg.Filters:
		return nil, fmt.Errorf("it has a seccomp filter of its own: %w", unum.ErrStaysHome)
	case t.Pid == 1 || t.Depth != h.depth:
		return nil, fmt.Errorf("it is in a PID namespace of its own: %w", unum.ErrStaysHome)
	}
	for _, ns := range []string{"mnt", "user", "net", "ipc", "uts", "cgroup", "time"} {
		if link, err := os.Readlink(dir + "/ns/" + ns); err != nil {
			return nil, err
		} else if link != h.spaces[ns] {
			return nil, fmt.Errorf("it is in a %s namespace of its own: %w", ns, unum.ErrStaysHome)
		}
	}
	root, err := os.Readlink(dir + "/root")
	if err != nil {
		return nil, err
	}
	if root != "/" {
		return nil, fmt.Errorf("its root is %s: %w", root, unum.ErrStaysHome)
	}
	if bound, err := h.bound(c.n.Tid); err != nil {
		return nil, err
	} else if bound {
		return nil, fmt.Errorf("it is bound to processors of this node: %w", unum.ErrStaysHome)
	}
	if kids, err := children(t); err != nil {
		return nil, err
	} else if kids {
		return nil, fmt.Errorf("it has children here: %w", unum.ErrStaysHome)
	}
	if name := sharedMemory(dir); name != "" {
		return nil, fmt.Errorf("it has %s mapped, which only this node has: %w", name, unum.ErrStaysHome)
	}
	s := &Spec{
		Reaper: h.reapers.has(t.Tgid, t.Start), Reapers: h.above(t),
		Pid: t.Pid, Pgid: t.Pgid, Sid: t.Sid, Path: c.path, Argv: c.argv,
		File: c.real, FileIno: c.ino,
		Umask: t.Umask, Nice: t.Nice, Policy: t.Policy,
		Uid: t.Uid, Gid: t.Gid, Groups: t.Groups,
		CapInh: t.CapInh, CapPrm: t.CapPrm, CapEff: t.CapEff, CapBnd: t.CapBnd, CapAmb: t.CapAmb,
		NoNewPrivs: t.NoNewPrivs, SigBlk: t.SigBlk, SigIgn: t.SigIgn, SigPnd: t.SigPnd & t.SigBlk, ctty: -1,
	}
	if t.Policy != 0 {
		return nil, fmt.Errorf("its scheduling policy is %d: %w", t.Policy, unum.ErrStaysHome)
	}
	if s.IOPrio, err = sys.IOPrio(c.n.Tid); err != nil {
		return nil, err
	}
	if s.Env, err = readVector(c.n.Tid, c.envAddr); err != nil {
		return nil, err
	}
	if s.Cwd, err = os.Readlink(dir + "/cwd"); err != nil {
		return nil, err
	}
	if strings.HasSuffix(s.Cwd, " (deleted)") || ownPlace(s.Cwd) {
		return nil, fmt.Errorf("its working directory is %s: %w", s.Cwd, unum.ErrStaysHome)
	}
	var cwd unix.Stat_t
	if err := unix.Stat(dir+"/cwd", &cwd); err != nil {
		return nil, err
	}
	s.CwdIno = cwd.Ino
	if s.Limits, err = sys.ReadLimits(t.Tgid); err != nil {
		return nil, err
	}
	b, err := sys.ReadProc(dir + "/oom_score_adj")
	if err != nil {
		return nil, err
	}
	s.OOM, _ = strconv.Atoi(strings.TrimSpace(string(b)))
	if b, err = sys.ReadProc(dir + "/personality"); err != nil {
		return nil, err
	}
	s.Persona, _ = strconv.ParseUint(strings.TrimSpace(string(b)), 16, 64)
	return s, nil
}

// bound says whether a thread may use other processors than the world may: the
// numbers mean something here only.
func (h *Homes) bound(tid int) (bool, error) {
	var its, all unix.CPUSet
	if err := unix.SchedGetaffinity(tid, &its); err != nil {
		return false, err
	}
	if err := unix.SchedGetaffinity(h.cfg.Root.HostPid, &all); err != nil {
		return false, err
	}
	return its != all, nil
}

func ownPlace(p string) bool {
	for _, own := range ownPlaces {
		if strings.HasPrefix(p+"/", own) {
			return true
		}
	}
	return false
}

// children says whether a process has any.
func children(t *sys.Task) (bool, error) {
	dir := "/proc/" + strconv.Itoa(t.Tgid) + "/task/"
	tids := []string{strconv.Itoa(t.Tgid)}
	if t.Threads != 1 {
		var err error
		if tids, err = sys.ReadDirNames(dir); err != nil {
			return false, err
		}
	}
	for _, tid := range tids {
		b, err := sys.ReadProc(dir + tid + "/children")
		if err != nil && !os.IsNotExist(err) {
			return false, err
		}
		if len(bytes.TrimSpace(b)) > 0 {
			return true, nil
		}
	}
	return false, nil
}
