package sys

import (
	"bytes"
	"strconv"

	"golang.org/x/sys/unix"
)

// Birth tells one process from another of the same number, and whose child it
// is. PIDs are those of the reader's PID namespace.
type Birth struct {
	Ppid  int
	Start uint64 // clock ticks after boot
	State byte
}

// ReadBirth reads it from /proc/PID/stat. A zombie still has one.
func ReadBirth(pid int) (b Birth, err error) {
	text, err := ReadProc("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return b, err
	}
	f := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(f) < 20 {
		return b, unix.EINVAL
	}
	b.State = f[0][0]
	b.Ppid, _ = strconv.Atoi(string(f[1]))
	b.Start, err = strconv.ParseUint(string(f[19]), 10, 64)
	return b, err
}

// Tgid returns the process that a thread belongs to.
func Tgid(tid int) (int, error) {
	b, err := ReadProc("/proc/" + strconv.Itoa(tid) + "/status")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(statusField(b, "Tgid")))
}
