package sys

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// limitNames are the resources in the kernel's order, as /proc/PID/limits
// names them (fs/proc/base.c).
var limitNames = [16]string{
	"Max cpu time", "Max file size", "Max data size", "Max stack size", "Max core file size",
	"Max resident set", "Max processes", "Max open files", "Max locked memory", "Max address space",
	"Max file locks", "Max pending signals", "Max msgqueue size", "Max nice priority",
	"Max realtime priority", "Max realtime timeout",
}

// ReadLimits reads all limits of a process, soft and hard, in the kernel's
// order. It works for any process that can be seen: prlimit(2), which is quicker
// than text, refuses those of other users without CAP_SYS_RESOURCE.
func ReadLimits(pid int) (out [16]unix.Rlimit, err error) {
	for i := range out {
		if err = unix.Prlimit(pid, i, nil, &out[i]); err != nil {
			return readLimits(pid)
		}
	}
	return out, nil
}

func readLimits(pid int) (out [16]unix.Rlimit, err error) {
	b, err := ReadProc("/proc/" + strconv.Itoa(pid) + "/limits")
	if err != nil {
		return out, err
	}
	found := 0
	for line := range bytes.Lines(b) {
		if found == len(out) {
			break
		}
		rest, ok := bytes.CutPrefix(line, []byte(limitNames[found]))
		if !ok {
			continue // the heading
		}
		soft, rest, _ := bytes.Cut(bytes.TrimLeft(rest, " "), []byte(" "))
		hard, _, _ := bytes.Cut(bytes.TrimLeft(rest, " "), []byte(" "))
		var err1, err2 error
		out[found].Cur, err1 = limitValue(soft)
		out[found].Max, err2 = limitValue(hard)
		if err := errors.Join(err1, err2); err != nil {
			return out, fmt.Errorf("limits of %d: %q: %w", pid, line, err)
		}
		found++
	}
	if found != len(out) {
		return out, fmt.Errorf("limits of %d: %d of %d are told", pid, found, len(out))
	}
	return out, nil
}

func limitValue(b []byte) (uint64, error) {
	if string(b) == "unlimited" {
		return unix.RLIM_INFINITY, nil
	}
	return strconv.ParseUint(string(b), 10, 64)
}
