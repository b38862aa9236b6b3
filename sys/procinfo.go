package sys

import (
	"bytes"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"unum"
)

// Task is what /proc tells of one thread that matters for making another
// process like it. PIDs are those of the world (the innermost namespace).
type Task struct {
	Tgid           int // in the reader's PID namespace
	Pid, Pgid, Sid unum.Pid
	Ppid           int // in the reader's PID namespace; 0 if outside of it
	Depth          int // nested PID namespaces, as the reader sees them
	Threads        int
	Tracer         int
	Umask          uint32
	Uid, Gid       [4]uint32 // real, effective, saved, file system
	Groups         []uint32
	SigBlk, SigIgn uint64 // bit n−1 is signal n
	SigPnd         uint64 // pending, for the thread or the process
	CapInh, CapPrm uint64
	CapEff, CapBnd uint64
	CapAmb         uint64
	NoNewPrivs     bool
	Filters        int // seccomp filters

	Comm   string
	State  byte
	TTY    uint32 // device number of the controlling terminal, 0 if none
	Nice   int
	Policy int
	Start  uint64 // clock ticks after boot
	Utime  uint64 // clock ticks, this process and its reaped children
	Stime  uint64
	Cutime uint64
	Cstime uint64
}

// ReadStatus reads /proc/TID/status; the fields of Task that stat tells stay
// empty.
func ReadStatus(tid int) (*Task, error) {
	path := "/proc/" + strconv.Itoa(tid) + "/status"
	b, err := ReadProc(path)
	if err != nil {
		return nil, err
	}
	t := &Task{}
	if err := t.status(b); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

// ReadTask reads /proc/TID/status and stat.
func ReadTask(tid int) (*Task, error) {
	t, err := ReadStatus(tid)
	if err != nil {
		return nil, err
	}
	dir := "/proc/" + strconv.Itoa(tid)
	b, err := ReadProc(dir + "/stat")
	if err != nil {
		return nil, err
	}
	if err := t.stat(b); err != nil {
		return nil, fmt.Errorf("%s/stat: %w", dir, err)
	}
	return t, nil
}

func (t *Task) status(b []byte) error {
	var bad error
	num := func(s []byte, base int) uint64 {
		v, err := strconv.ParseUint(string(s), base, 64)
		if err != nil && bad == nil {
			bad = err
		}
		return v
	}
	last := func(s []byte) unum.Pid {
		f := bytes.Fields(s)
		if len(f) == 0 {
			return 0
		}
		return unum.Pid(num(f[len(f)-1], 10))
	}
	four := func(s []byte) (out [4]uint32) {
		for i, f := range bytes.Fields(s) {
			if i < 4 {
				out[i] = uint32(num(f, 10))
			}
		}
		return out
	}
	for line := range bytes.Lines(b) {
		k, v, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue
		}
		v = bytes.TrimSpace(v)
		switch string(k) {
		case "Umask":
			t.Umask = uint32(num(v, 8))
		case "Tgid":
			t.Tgid = int(num(v, 10))
		case "PPid":
			t.Ppid = int(num(v, 10))
		case "TracerPid":
			t.Tracer = int(num(v, 10))
		case "Uid":
			t.Uid = four(v)
		case "Gid":
			t.Gid = four(v)
		case "Groups":
			for _, f := range bytes.Fields(v) {
				t.Groups = append(t.Groups, uint32(num(f, 10)))
			}
		case "NStgid":
			t.Pid = last(v)
			t.Depth = len(bytes.Fields(v))
		case "NSpgid":
			t.Pgid = last(v)
		case "NSsid":
			t.Sid = last(v)
		case "Threads":
			t.Threads = int(num(v, 10))
		case "SigPnd", "ShdPnd":
			t.SigPnd |= num(v, 16)
		case "SigBlk":
			t.SigBlk = num(v, 16)
		case "SigIgn":
			t.SigIgn = num(v, 16)
		case "CapInh":
			t.CapInh = num(v, 16)
		case "CapPrm":
			t.CapPrm = num(v, 16)
		case "CapEff":
			t.CapEff = num(v, 16)
		case "CapBnd":
			t.CapBnd = num(v, 16)
		case "CapAmb":
			t.CapAmb = num(v, 16)
		case "NoNewPrivs":
			t.NoNewPrivs = string(v) == "1"
		case "Seccomp_filters":
			t.Filters = int(num(v, 10))
		}
	}
	return bad
}

// stat's second field may hold anything, so fields are counted after its last
// parenthesis (man 5 proc_pid_stat).
func (t *Task) stat(b []byte) error {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return unix.EINVAL
	}
	t.Comm = string(b[open+1 : end])
	f := bytes.Fields(b[end+1:])
	if len(f) < 39 {
		return unix.EINVAL
	}
	t.State = f[0][0]
	field := func(n int) uint64 { // numbered as in the man page
		v, _ := strconv.ParseInt(string(f[n-3]), 10, 64)
		return uint64(v)
	}
	t.TTY = uint32(field(7))
	t.Utime, t.Stime = field(14), field(15)
	t.Cutime, t.Cstime = field(16), field(17)
	t.Nice = int(int64(field(19)))
	t.Start = field(22)
	t.Policy = int(field(41))
	return nil
}
