package sys

import (
	"bytes"
	"fmt"
	"strconv"

	"unum"
)

// field returns the value of "name:" in the text of /proc/PID/status.
func statusField(b []byte, name string) []byte {
	key := "\n" + name + ":"
	i := bytes.Index(b, []byte(key))
	if i < 0 {
		return nil
	}
	b = b[i+len(key):]
	if j := bytes.IndexByte(b, '\n'); j >= 0 {
		b = b[:j]
	}
	return bytes.TrimSpace(b)
}

// WorldPid returns the number that process pid of /proc has in the innermost
// PID namespace it lives in.
func WorldPid(pid int) (unum.Pid, error) {
	b, err := ReadProc("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, err
	}
	f := bytes.Fields(statusField(b, "NSpid"))
	if len(f) == 0 {
		return 0, fmt.Errorf("/proc/%d/status has no NSpid", pid)
	}
	n, err := strconv.Atoi(string(f[len(f)-1]))
	return unum.Pid(n), err
}
