package rexec

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"unum/sys"
)

// sharedMemory names a file of /dev/shm, such as a named semaphore, that the
// caller has mapped, or, before its exec, its parent in vfork. The directory is
// each node's own, and whoever has such a file is likely to tell its name to
// what it starts: Python's multiprocessing does. dir is the caller's in /proc.
func sharedMemory(dir string) string {
	// Mostly there is none, and then nothing else is read.
	shm := dir + "/root/dev/shm"
	names, err := sys.ReadDirNames(shm)
	if err != nil || len(names) == 0 {
		return ""
	}
	maps, err := os.ReadFile(dir + "/maps") // comes in pieces
	if err != nil {
		return ""
	}
	var mapped map[string]bool // inodes
	for line := range bytes.Lines(maps) {
		// The name in it may be an earlier one: sem_open(3) links a temporary
		// file to the name that others know, and removes the first.
		if f := bytes.Fields(line); len(f) > 5 && bytes.HasPrefix(f[5], []byte("/dev/shm/")) {
			if mapped == nil {
				mapped = map[string]bool{}
			}
			mapped[string(f[4])] = true
		}
	}
	if mapped == nil {
		return ""
	}
	for _, name := range names {
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(shm, name), &st) == nil && mapped[strconv.FormatUint(st.Ino, 10)] {
			return "/dev/shm/" + name
		}
	}
	return ""
}
