package sys

import (
	"bytes"
	"strconv"
)

// MemFree returns MemTotal and MemAvailable of /proc/meminfo, in bytes.
func MemFree() (total, free uint64, err error) {
	b, err := ReadProc("/proc/meminfo")
	if err != nil {
		return 0, 0, err
	}
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseUint(string(f[1]), 10, 64)
		switch string(f[0]) {
		case "MemTotal:":
			total = n << 10
		case "MemAvailable:":
			free = n << 10
		}
	}
	return total, free, nil
}

// Runnable says whether the first thread of a process is running or waiting
// for a processor.
func Runnable(pid int) bool {
	b, err := ReadProc("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	i := bytes.LastIndexByte(b, ')')
	return i >= 0 && i+2 < len(b) && b[i+2] == 'R'
}
