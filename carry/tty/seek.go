package tty

import (
	"bytes"
	"encoding/binary"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"unum/sys"
)

// seeker looks for tasks that wait for input of one terminal.
type seeker struct {
	dev uint32
	own bool // it is the process's controlling terminal, so /dev/tty is it
	buf [1024]byte
}

func (s *seeker) process(pid int) bool {
	dir := "/proc/" + strconv.Itoa(pid) + "/task"
	d, err := os.Open(dir)
	if err != nil {
		return false
	}
	tids, err := d.Readdirnames(-1)
	d.Close()
	if err != nil {
		return false
	}
	for _, tid := range tids {
		if s.task(pid, dir+"/"+tid) {
			return true
		}
	}
	return s.spins(pid)
}

// spins says whether the process has a non-blocking terminal as its standard
// input: it may look for input at any moment, and is never seen waiting.
func (s *seeker) spins(pid int) bool {
	if !s.is(pid, 0) {
		return false
	}
	b, err := readSmall("/proc/"+strconv.Itoa(pid)+"/fdinfo/0", s.buf[:])
	if err != nil {
		return false
	}
	_, b, _ = bytes.Cut(b, []byte("flags:"))
	b, _, _ = bytes.Cut(b, []byte("\n"))
	flags, err := strconv.ParseUint(string(bytes.TrimSpace(b)), 8, 32)
	return err == nil && flags&unix.O_NONBLOCK != 0
}

// task reads /proc/PID/task/TID/syscall: number, six arguments, stack pointer
// and program counter of a task that is blocked in a call (man 5 proc_pid_syscall).
func (s *seeker) task(pid int, dir string) bool {
	b, err := readSmall(dir+"/syscall", s.buf[:])
	if err != nil || len(b) == 0 || b[0] < '0' || b[0] > '9' {
		return false // "running", or "-1" outside of any call
	}
	f := bytes.Fields(b)
	if len(f) < 7 {
		return false
	}
	nr, err := strconv.Atoi(string(f[0]))
	if err != nil {
		return false
	}
	var a [6]uint64
	for i := range a {
		if a[i], err = strconv.ParseUint(string(f[i+1]), 0, 64); err != nil {
			return false
		}
	}
	switch callOf(nr) {
	case callRead:
		return s.is(pid, int(int32(a[0])))
	case callPoll:
		return s.poll(pid, a[0], a[1])
	case callSelect:
		return s.selects(pid, a[0], a[1])
	case callEpoll:
		return s.epoll(pid, int(int32(a[0])))
	case callRestart:
		// poll after a stop; what else restarts this way sleeps elsewhere.
		w, err := readSmall(dir+"/wchan", make([]byte, 128))
		if err == nil && bytes.Contains(w, []byte("poll")) {
			return s.poll(pid, a[0], a[1])
		}
	}
	return false
}

const pollRdNorm = 0x40

type call int

const (
	callOther call = iota
	callRead
	callPoll
	callSelect
	callEpoll
	callRestart
)

// is says whether a descriptor of the process is the terminal.
func (s *seeker) is(pid, fd int) bool {
	name := "/proc/" + strconv.Itoa(pid) + "/fd/" + strconv.Itoa(fd)
	l, err := os.Readlink(name)
	if err != nil || !strings.HasPrefix(l, "/dev/") {
		return false
	}
	var st unix.Stat_t
	if unix.Stat(name, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return false
	}
	return uint32(st.Rdev) == s.dev || s.own && st.Rdev == unix.Mkdev(majAlt, 0)
}

// poll reads struct pollfd[n].
func (s *seeker) poll(pid int, addr, n uint64) bool {
	if n == 0 || n > 1024 {
		return false
	}
	b := make([]byte, 8*n)
	got, err := sys.ReadMem(pid, addr, b)
	if err != nil {
		return false
	}
	for b = b[:got&^7]; len(b) > 0; b = b[8:] {
		fd := int32(binary.NativeEndian.Uint32(b))
		ev := int16(binary.NativeEndian.Uint16(b[4:]))
		if fd >= 0 && ev&(unix.POLLIN|pollRdNorm) != 0 && s.is(pid, int(fd)) {
			return true
		}
	}
	return false
}

// selects reads the read set.
func (s *seeker) selects(pid int, n, addr uint64) bool {
	if addr == 0 || n == 0 || n > 4096 {
		return false
	}
	b := make([]byte, (n+63)/64*8)
	got, err := sys.ReadMem(pid, addr, b)
	if err != nil {
		return false
	}
	for fd := range min(int(n), got*8) {
		if b[fd/8]&(1<<(fd%8)) != 0 && s.is(pid, fd) {
			return true
		}
	}
	return false
}

// epoll reads the "tfd: 0 events: 19 data: …" lines of fdinfo.
func (s *seeker) epoll(pid, epfd int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/fdinfo/" + strconv.Itoa(epfd))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 4 || f[0] != "tfd:" || f[2] != "events:" {
			continue
		}
		fd, err := strconv.Atoi(f[1])
		ev, err2 := strconv.ParseUint(f[3], 16, 32)
		if err == nil && err2 == nil && ev&unix.EPOLLIN != 0 && s.is(pid, fd) {
			return true
		}
	}
	return false
}

// readSmall reads a file of /proc that fits into buf.
func readSmall(path string, buf []byte) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		return buf[:max(n, 0)], err
	}
}
