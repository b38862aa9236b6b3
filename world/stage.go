package world

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/sys"
	"unum/world/cgroup"
)

// Descriptors of the stages.
const (
	configFD = 3 // stageConfig, as JSON
	reportFD = 4 // what went wrong; its end without a word is success
	ackFD    = 5 // stage 1: ends when the daemon has a pidfd of pid 1
	stubFD   = 102
)

// stubName is what ps calls pid 1.
const stubName = "unum-world"

// stageConfig is Config as it crosses to the stages.
type stageConfig struct {
	Config
	CgroupName string
	BirthDir   bool // the child is born into the registry
}

// The main goroutine of a stage stays on the main thread: the time namespace
// is set through /proc/self, and the thread that executes the stub should be
// the leader.
func init() {
	if len(os.Args) > 1 && (os.Args[1] == Stage1Command || os.Args[1] == Stage2Command) {
		runtime.LockOSThread()
	}
}

// Stage1 is the main function of the hidden command Stage1Command. It returns
// the exit status.
func Stage1() int {
	if err := stage1(); err != nil {
		report(err)
		return 1
	}
	return 0
}

func stage1() error {
	unix.CloseOnExec(ackFD)
	c, err := readStageConfig()
	if err != nil {
		return err
	}
	if err := enterTimeNamespace(c.MonotonicOffset, c.BoottimeOffset); err != nil {
		return err
	}
	birth := -1
	if c.BirthDir {
		f, err := cgroup.Open(c.CgroupName).BirthDir()
		if err != nil {
			return err
		}
		birth = int(f.Fd())
	}
	originalLimits()
	if err := sys.DefaultSlack(); err != nil {
		return err
	}
	if err := wanted(); err != nil {
		return err
	}
	pid, err := forkExec(unix.CLONE_NEWPID|unix.CLONE_NEWNS|unix.CLONE_NEWIPC|unix.CLONE_NEWUTS,
		birth, reportFD, "/proc/self/exe", []string{"unum", Stage2Command}, nil)
	if err != nil {
		return err
	}
	// While this process has not reaped it, the number stays pid 1's.
	if _, err := fmt.Fprintf(os.NewFile(reportFD, "report"), "pid %d\n", pid); err != nil {
		return err
	}
	os.NewFile(ackFD, "ack").Read(make([]byte, 1))
	return nil
}

// Stage2 is the main function of the hidden command Stage2Command: pid 1 of
// the new world until the stub takes its place. It returns only on failure.
func Stage2() int {
	report(stage2())
	return 1
}

func stage2() error {
	c, err := readStageConfig()
	if err != nil {
		return err
	}
	if !c.BirthDir {
		if err := cgroup.Open(c.CgroupName).Enrol(0); err != nil {
			return err
		}
	}
	if _, err := unix.Setsid(); err != nil {
		return fmt.Errorf("setsid: %w", err)
	}
	if err := mountWorld(&c.Config); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
		return fmt.Errorf("set hostname %q: %w", c.Hostname, err)
	}
	ordinary()
	last, err := takeRange(c.Range)
	if err != nil {
		return err
	}
	stub, err := memfd(c.Stub)
	if err != nil {
		return err
	}
	// Everything else closes at the exec. Go's own descriptors cannot be
	// closed before: its poller would throw.
	if err := unix.CloseRange(0, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range: %w", err)
	}
	for from, to := range map[int]int{last: LastPidFD, stub: stubFD} {
		flags := 0
		if to == stubFD {
			flags = unix.O_CLOEXEC
		}
		if err := unix.Dup3(from, to, flags); err != nil {
			return fmt.Errorf("dup3: %w", err)
		}
	}
	originalLimits()
	if err := wanted(); err != nil {
		return err
	}
	return becomeStub(c.Filter, stubFD, stubName, c.Cookie)
}

// wanted fails if the daemon that asked for the world has died: its successor
// may have looked for a world before this one could be found, and make
// another.
func wanted() error {
	p := []unix.PollFd{{Fd: reportFD}}
	if _, err := unix.Poll(p, 0); err == nil && p[0].Revents&unix.POLLERR != 0 {
		return errors.New("the daemon is gone")
	}
	return nil
}

func readStageConfig() (*stageConfig, error) {
	var st unix.Stat_t
	if err := unix.Fstat(configFD, &st); err != nil {
		return nil, fmt.Errorf("no configuration at descriptor %d: this command is not for people", configFD)
	}
	b := make([]byte, st.Size)
	if _, err := unix.Pread(configFD, b, 0); err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	c := new(stageConfig)
	return c, json.Unmarshal(b, c)
}

// report sends an error to the daemon; the sentinel goes by its name.
func report(err error) {
	s := "error - " + err.Error()
	for name, sentinel := range unum.Sentinels {
		if errors.Is(err, sentinel) {
			s = "error " + name + " " + strings.TrimSuffix(err.Error(), ": "+sentinel.Error())
		}
	}
	unix.Write(reportFD, []byte(s))
}

// reported turns what report wrote into an error again.
func reported(s string) error {
	f := strings.SplitN(s, " ", 3)
	if len(f) == 3 && f[0] == "error" {
		if sentinel := unum.Sentinels[f[1]]; sentinel != nil {
			return fmt.Errorf("%s: %w", f[2], sentinel)
		}
		return errors.New(f[2])
	}
	return errors.New(s)
}

// enterTimeNamespace makes the time namespace of the children to come. The
// offsets can be written until a process is in it (time_namespaces(7)).
func enterTimeNamespace(mono, boot time.Duration) error {
	err := unix.Unshare(unix.CLONE_NEWTIME)
	if err == unix.EINVAL {
		if mono == 0 && boot == 0 {
			return nil
		}
		return fmt.Errorf("kernel without time namespaces (CONFIG_TIME_NS): %w", unum.ErrNoFeature)
	}
	if err != nil {
		return fmt.Errorf("unshare time namespace: %w", err)
	}
	s := fmt.Sprintf("monotonic %s\nboottime %s\n", offset(mono), offset(boot))
	if err := os.WriteFile("/proc/self/timens_offsets", []byte(s), 0); err != nil {
		return fmt.Errorf("set clock offsets: %w", err)
	}
	return nil
}

// offset prints seconds and nanoseconds; the latter are never negative.
func offset(d time.Duration) string {
	sec, ns := d/time.Second, d%time.Second
	if ns < 0 {
		sec, ns = sec-1, ns+time.Second
	}
	return fmt.Sprintf("%d %d", sec, ns)
}

// originalLimits undoes what Go's runtime did at its start: it raises the
// soft limit of open files, and takes that back only before it executes a
// program by itself. So let it try one that does not exist.
func originalLimits() { syscall.Exec("", nil, nil) }

// ordinary takes back what the daemon gave itself and no program should
// inherit. Failures do not matter: the value is then what it was.
func ordinary() {
	unix.Umask(0o022)
	unix.Setgroups(nil)
	unix.Setpriority(unix.PRIO_PROCESS, 0, 0)
	os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0)
}

// takeRange makes the range's PIDs the next to be born and returns a
// descriptor of ns_last_pid. Preconditions: /proc is the new namespace's.
func takeRange(r unum.PIDRange) (int, error) {
	const maxFile, lastFile = "/proc/sys/kernel/pid_max", "/proc/sys/kernel/ns_last_pid"
	// The whole cluster's numbers must be possible: bodies of every node's range
	// are made here. (Before 6.14 pid_max is the machine's.) What keeps births
	// within the range is pid 1, which sets the cursor back.
	limit := int(unum.PidLimit)
	b, err := os.ReadFile(maxFile)
	if err != nil {
		return -1, err
	}
	if now, _ := strconv.Atoi(strings.TrimSpace(string(b))); now != limit {
		if err := os.WriteFile(maxFile, []byte(strconv.Itoa(limit)), 0); err != nil {
			return -1, fmt.Errorf("set pid_max to %d: %w", limit, err)
		}
	}
	fd, err := unix.Open(lastFile, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return -1, fmt.Errorf("kernel without checkpoint support (CONFIG_CHECKPOINT_RESTORE): %w", unum.ErrNoFeature)
	}
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", lastFile, err)
	}
	if _, err := unix.Write(fd, []byte(strconv.Itoa(int(r.First)))); err != nil {
		return -1, fmt.Errorf("set ns_last_pid to %d: %w", r.First, err)
	}
	return fd, nil
}

// release is the kernel's version.
func release() (major, minor int) {
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	}
	return major, minor
}

// memfd returns a file in memory that every user may execute. MFD_EXEC is
// 6.3; before, such files are always executable.
func memfd(image []byte) (int, error) {
	fd, err := unix.MemfdCreate(stubName, unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if err == unix.EINVAL {
		fd, err = unix.MemfdCreate(stubName, unix.MFD_CLOEXEC)
	}
	if err != nil {
		return -1, fmt.Errorf("memfd_create: %w", err)
	}
	if _, err := unix.Write(fd, image); err != nil {
		return -1, fmt.Errorf("write stub: %w", err)
	}
	// A file that is open for writing is not executed (ETXTBSY).
	ro, err := unix.Open(filepath.Join("/proc/self/fd", strconv.Itoa(fd)), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("reopen stub: %w", err)
	}
	unix.Fchmod(fd, 0o777)
	unix.Close(fd)
	return ro, nil
}
