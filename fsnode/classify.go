package fsnode

import (
	"bytes"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// atPosition says whether thread tid, which waits in a READ or a WRITE of
// ours, uses its descriptor's position (read, write) or names an offset
// (pread, a page fault). /proc/TID/syscall shows the call and its arguments
// (proc_pid_syscall(5)).
func atPosition(tid uint32, write bool) bool {
	if tid == 0 {
		return false // a kernel thread, such as write-back
	}
	nr, args, ok := syscallOf(int(tid))
	if !ok {
		return false
	}
	switch nr {
	case unix.SYS_READ, unix.SYS_READV:
		return !write // a WRITE in a read is a page being evicted
	case unix.SYS_WRITE, unix.SYS_WRITEV:
		return write
	case unix.SYS_PREADV2:
		return !write && args[3] == ^uint64(0)
	case unix.SYS_PWRITEV2:
		return write && args[3] == ^uint64(0)
	case unix.SYS_SENDFILE:
		return write // the source is read through the page cache, at offsets
	case unix.SYS_SPLICE, unix.SYS_COPY_FILE_RANGE:
		return write && args[3] == 0
	}
	return false
}

// syscallOf returns the call that a thread is blocked in.
func syscallOf(tid int) (nr int, args [6]uint64, ok bool) {
	fd, err := unix.Open("/proc/"+strconv.Itoa(tid)+"/syscall", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, args, false
	}
	defer unix.Close(fd)
	var buf [256]byte
	for i := 0; ; i++ {
		n, err := unix.Pread(fd, buf[:], 0)
		if err != nil {
			return 0, args, false
		}
		f := bytes.Fields(buf[:n])
		if len(f) >= 7 {
			nr, err := strconv.Atoi(string(f[0]))
			if err != nil {
				return 0, args, false
			}
			for j := range args {
				args[j], _ = strconv.ParseUint(string(bytes.TrimPrefix(f[1+j], []byte("0x"))), 16, 64)
			}
			return nr, args, true
		}
		// "running": the caller has woken us and is about to sleep.
		if i < 1000 {
			runtime.Gosched()
		} else if i < 2000 {
			unix.Nanosleep(&unix.Timespec{Nsec: 20_000}, nil)
		} else {
			return 0, args, false
		}
	}
}

// killed says whether SIGKILL is on its way to a thread.
func killed(tid uint32) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(int(tid)) + "/status")
	if err != nil {
		return false
	}
	for _, set := range []string{"\nSigPnd:", "\nShdPnd:"} {
		_, rest, _ := bytes.Cut(b, []byte(set))
		line, _, _ := bytes.Cut(rest, []byte("\n"))
		mask, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 16, 64)
		if err == nil && mask&(1<<(unix.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}

// groupsOf returns the supplementary groups of a thread.
func groupsOf(tid uint32) []uint32 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(int(tid)) + "/status")
	if err != nil {
		return nil
	}
	_, rest, _ := bytes.Cut(b, []byte("\nGroups:"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	var groups []uint32
	for _, w := range bytes.Fields(line) {
		if g, err := strconv.ParseUint(string(w), 10, 32); err == nil {
			groups = append(groups, uint32(g))
		}
	}
	return groups
}
