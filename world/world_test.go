package world

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/world/cgroup"
	"unum/world/worldtest"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case Stage1Command:
			os.Exit(Stage1())
		case Stage2Command:
			os.Exit(Stage2())
		case "start-and-wait":
			c, err := readStageConfig()
			if err == nil {
				c.Cgroup = cgroup.Open(c.CgroupName)
				_, err = Start(context.Background(), c.Config)
			}
			fmt.Println(err)
			unix.Pause()
		}
	}
	unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	os.Exit(m.Run())
}

func testConfig(t *testing.T) Config {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	g, err := cgroup.Create(fmt.Sprintf("unum-test-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-")), 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := g.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	c := Config{
		Node: "n3", Hostname: "one", Range: unum.RangeOf(2),
		RunDir: filepath.Join(dir, "run"), PubDir: filepath.Join(dir, "pub"),
		Cgroup: g, Stub: worldtest.Stub(), Filter: worldtest.Filter(), Cookie: 7,
		MonotonicOffset: 1000 * time.Second, BoottimeOffset: -1500 * time.Millisecond,
	}
	for _, d := range []string{c.RunDir, c.PubDir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func startWorld(t *testing.T, c Config) *World {
	t.Helper()
	w, err := Start(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, w) })
	return w
}

func end(t *testing.T, w *World) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := w.Kill(ctx); err != nil {
		t.Error(err)
	}
	var ws unix.WaitStatus
	unix.Wait4(w.Pid1HostPid(), &ws, 0, nil)
	w.Close()
}

// inWorld runs a command in the world's namespaces and returns what it prints.
func inWorld(t *testing.T, w *World, args ...string) string {
	t.Helper()
	args = append([]string{"-a", "-t", strconv.Itoa(w.Pid1HostPid()), "--"}, args...)
	out, err := exec.Command("nsenter", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestWorld(t *testing.T) {
	c := testConfig(t)
	began := time.Now()
	w := startWorld(t, c)
	t.Logf("started in %v", time.Since(began))
	proc := fmt.Sprintf("/proc/%d/", w.Pid1HostPid())

	t.Run("namespaces", func(t *testing.T) {
		for name, fresh := range map[string]bool{"pid": true, "mnt": true, "ipc": true, "uts": true, "time": true, "net": false, "user": false} {
			in, err := os.Readlink(proc + "ns/" + name)
			if err != nil {
				t.Fatal(err)
			}
			out, _ := os.Readlink("/proc/self/ns/" + name)
			if (in != out) != fresh {
				t.Errorf("namespace %s: inside %s, outside %s", name, in, out)
			}
		}
		b, _ := os.ReadFile(proc + "timens_offsets")
		if got := strings.Fields(string(b)); !slices.Equal(got, []string{"monotonic", "1000", "0", "boottime", "-2", "500000000"}) {
			t.Errorf("clock offsets are %q", got)
		}
	})
	t.Run("pid 1", func(t *testing.T) {
		fds, _ := os.ReadDir(proc + "fd")
		var names []string
		for _, f := range fds {
			names = append(names, f.Name())
		}
		if !slices.Equal(names, []string{"100", "101"}) {
			t.Errorf("descriptors of pid 1 are %q", names)
		}
		if l, _ := os.Readlink(proc + "fd/101"); l != "/proc/sys/kernel/ns_last_pid" {
			t.Errorf("descriptor 101 is %s", l)
		}
		status, _ := os.ReadFile(proc + "status")
		for _, want := range []string{"SigBlk:\t0000000000000000", "SigCgt:\t0000000000000000",
			"SigIgn:\t0000000000010000", "Umask:\t0022", "Groups:\t \n", "Seccomp_filters:\t1"} {
			if !bytes.Contains(status, []byte(want)) {
				t.Errorf("status lacks %q:\n%s", want, status)
			}
		}
		in, _ := os.ReadFile(proc + "limits")
		out, err := exec.Command("cat", "/proc/self/limits").Output()
		if err != nil || !bytes.Equal(in, out) {
			t.Errorf("limits inside:\n%s\nof a child outside:\n%s", in, out)
		}
	})
	t.Run("tree", func(t *testing.T) {
		if got := inWorld(t, w, "hostname"); got != "one" {
			t.Errorf("hostname is %q", got)
		}
		if got := inWorld(t, w, "sh", "-c", "ls -A /run; ls -A /run/unum; cat /run/unum/node; ls /proc/1/root/ >/dev/null && echo root"); got != "unum\nbin\nnode\nn3\nroot" {
			t.Errorf("/run is %q", got)
		}
		if got := inWorld(t, w, "sh", "-c", "cd /dev && ls -A"); got != strings.Join(strings.Fields("fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"), "\n") {
			t.Errorf("/dev is %q", got)
		}
		if got := inWorld(t, w, "sh", "-c", "echo x >/dev/null && head -c 2 /dev/zero | wc -c && script -qc 'tty' /dev/null"); !strings.HasPrefix(got, "2\n/dev/pts/0") {
			t.Errorf("devices say %q", got)
		}
		if got := inWorld(t, w, "sh", "-c", "stat -c '%a %g' /dev/pts/ptmx; ls -d /sys/fs/cgroup/*/ | wc -l"); !strings.HasPrefix(got, "666 ") || strings.HasSuffix(got, "\n0") {
			t.Errorf("ptmx and cgroups: %q", got)
		}
		if got := inWorld(t, w, "sh", "-c", "ps -e | grep -c unum-world; ls /sys/class/net"); !strings.HasPrefix(got, "1\n") && !strings.Contains(got, "lo") {
			t.Errorf("ps and links: %q", got)
		}
		if st, err := os.Stat(proc + "root/run/unum/bin/unum"); err != nil || st.Size() == 0 || st.Mode()&1 == 0 {
			t.Errorf("the program inside: %v, %v", st, err)
		}
		outside, _ := os.ReadFile("/proc/self/mountinfo")
		if bytes.Contains(outside, []byte(c.PubDir)) || bytes.Contains(outside, []byte(filepath.Join(filepath.Dir(c.PubDir), "root"))) {
			t.Errorf("mounts are seen outside:\n%s", outside)
		}
	})
	t.Run("pids", func(t *testing.T) {
		got, err := strconv.Atoi(inWorld(t, w, "sh", "-c", "echo $$"))
		if err != nil || !c.Range.Contains(unum.Pid(got)) || got > int(c.Range.First)+100 {
			t.Errorf("a child has PID %d (%v), the range is %v", got, err, c.Range)
		}
		if got := inWorld(t, w, "cat", "/proc/sys/kernel/pid_max"); got != strconv.Itoa(int(unum.PidLimit)) {
			t.Errorf("pid_max inside is %s", got)
		}
		if pids, err := w.HostPids(); err != nil || !slices.Equal(pids, []int{w.Pid1HostPid()}) {
			t.Errorf("HostPids() = %v, %v", pids, err)
		}
		testTranslation(t, w)
	})
	t.Run("listener", func(t *testing.T) {
		if tid := receive(t, w.Listener()); tid != w.Pid1HostPid() {
			t.Errorf("the call came from %d, pid 1 is %d", tid, w.Pid1HostPid())
		}
	})
}

func testTranslation(t *testing.T, w *World) {
	cmd := exec.Command("nsenter", "-p", "-t", strconv.Itoa(w.Pid1HostPid()), "sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var child int
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
		if child != 0 {
			// It is this process's child now; unreaped it would hold up the
			// end of pid 1.
			unix.Kill(child, unix.SIGKILL)
			unix.Wait4(child, nil, 0, nil)
		}
	}()
	for deadline := time.Now().Add(5 * time.Second); child == 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
		child, _ = strconv.Atoi(strings.TrimSpace(string(b)))
	}
	if child == 0 {
		t.Fatal("nsenter has no child")
	}
	if err := w.Cgroup().Enrol(child); err != nil {
		t.Fatal(err)
	}
	p, err := w.ToWorld(child)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := w.ToHost(p); err != nil || h != child {
		t.Errorf("ToHost(%d) = %d, %v; want %d", p, h, err, child)
	}
	if major, minor := release(); major > 6 || major == 6 && minor >= 11 {
		if q, err := nsPid(int(w.pidns.Fd()), nsGetPidInPidns, child); err != nil || q != int(p) {
			t.Errorf("by ioctl it is %d, %v; want %d", q, err, p)
		}
	}
	if q, err := w.inWorld(child); err != nil || q != int(p) {
		t.Errorf("by /proc it is %d, %v; want %d", q, err, p)
	}
	if h, err := w.scan(p); err != nil || h != child {
		t.Errorf("scan(%d) = %d, %v; want %d", p, h, err, child)
	}
	for what, f := range map[string]func() error{
		"ToWorld of a process outside": func() error { _, err := w.ToWorld(os.Getpid()); return err },
		"ToHost of nobody":             func() error { _, err := w.ToHost(4000000); return err },
		"inWorld of a process outside": func() error { _, err := w.inWorld(os.Getpid()); return noProcess(0, err) },
		"scan for nobody":              func() error { _, err := w.scan(4000000); return noProcess(0, err) },
	} {
		if err := f(); !errors.Is(err, unum.ErrNoProcess) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// receive takes the notification of the placeholder's call and returns who
// made it.
func receive(t *testing.T, l *os.File) int {
	t.Helper()
	p := []unix.PollFd{{Fd: int32(l.Fd()), Events: unix.POLLIN}}
	if n, err := unix.Poll(p, 5000); n != 1 || err != nil {
		t.Fatalf("nothing came on the listener: %d, %v", n, err)
	}
	return recvTid(t, int(l.Fd()))
}

func TestTakeover(t *testing.T) {
	c := testConfig(t)
	if _, err := Attach(context.Background(), c); !errors.Is(err, unum.ErrNoProcess) {
		t.Errorf("Attach without a world: %v", err)
	}
	first, err := Start(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Start(context.Background(), c); !errors.Is(err, unum.ErrExists) {
		t.Errorf("second Start: %v", err)
	}
	first.Close() // as when the daemon dies
	began := time.Now()
	w, err := Attach(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("taken over in %v", time.Since(began))
	defer end(t, w)
	if w.Pid1HostPid() != first.Pid1HostPid() {
		t.Errorf("took over %d, started %d", w.Pid1HostPid(), first.Pid1HostPid())
	}
	if tid := receive(t, w.Listener()); tid != w.Pid1HostPid() {
		t.Errorf("the call came from %d", tid)
	}
}

func TestKillLeavesNothing(t *testing.T) {
	c := testConfig(t)
	w := startWorld(t, c)
	cmd := exec.Command("nsenter", "-a", "-t", strconv.Itoa(w.Pid1HostPid()), "sh", "-c", "sleep 100 & setsid sleep 100 & wait")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ns, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", w.Pid1HostPid()))
	if err := KillIn(context.Background(), c.Cgroup); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	unix.Wait4(w.Pid1HostPid(), nil, 0, nil)
	if _, err := os.Stat(w.Cgroup().Dir()); !os.IsNotExist(err) {
		t.Errorf("the world's cgroup: %v", err)
	}
	if pid, err := Find(c.Cgroup); !errors.Is(err, unum.ErrNoProcess) {
		t.Errorf("Find() = %d, %v", pid, err)
	}
	left, _ := filepath.Glob("/proc/[0-9]*/ns/pid")
	for _, l := range left {
		if n, _ := os.Readlink(l); n == ns {
			t.Errorf("%s is still in the world", l)
		}
	}
	if err := KillIn(context.Background(), c.Cgroup); err != nil {
		t.Errorf("KillIn without a world: %v", err)
	}
}

// A daemon that dies at any moment of a start leaves either a world that the
// next one takes over, or none; never two.
func TestDaemonDiesInStart(t *testing.T) {
	c := testConfig(t)
	started, tookOver := 0, 0
	for i := range 24 {
		f, err := configFile(&stageConfig{Config: c, CgroupName: c.Cgroup.Name()})
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/exe", "start-and-wait")
		cmd.ExtraFiles = []*os.File{f}
		out := new(bytes.Buffer)
		cmd.Stdout = out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		f.Close()
		time.Sleep(time.Duration(i) * time.Millisecond)
		cmd.Process.Kill()
		cmd.WaitDelay = time.Millisecond // its stages have its output
		cmd.Wait()

		w, err := Attach(context.Background(), c)
		tookOver++
		if errors.Is(err, unum.ErrNoProcess) {
			w, err = Start(context.Background(), c)
			tookOver--
			started++
		}
		if err != nil {
			t.Fatalf("killed after %d ms: %v", i, err)
		}
		if tid := receive(t, w.Listener()); tid != w.Pid1HostPid() {
			t.Errorf("killed after %d ms: the call came from %d", i, tid)
		}
		var pids []int
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if pids, err = w.HostPids(); len(pids) == 1 {
				break
			}
		}
		if err != nil || !slices.Equal(pids, []int{w.Pid1HostPid()}) {
			t.Errorf("killed after %d ms: the world has %v, %v; pid 1 is %d", i, pids, err, w.Pid1HostPid())
		}
		end(t, w)
		for reaped := 1; reaped > 0; { // the stages became this process's children
			reaped, _ = unix.Wait4(-1, nil, unix.WNOHANG, nil)
		}
	}
	t.Logf("%d taken over, %d started", tookOver, started)
}

func TestStartFails(t *testing.T) {
	for what, spoil := range map[string]func(*Config){
		"no such root": func(c *Config) { c.Root = "/nowhere" },
		"no ELF":       func(c *Config) { c.Stub = []byte("nothing") },
		"bad filter":   func(c *Config) { c.Filter = []unix.SockFilter{{Code: 0xffff}} },
		"no program":   func(c *Config) { c.Exe = "/nowhere" },
	} {
		t.Run(strings.ReplaceAll(what, " ", "_"), func(t *testing.T) {
			c := testConfig(t)
			spoil(&c)
			w, err := Start(context.Background(), c)
			if err == nil {
				end(t, w)
				t.Fatal("it started")
			}
			t.Log(err)
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("not one line: %q", err)
			}
			if pids, err := c.Cgroup.Procs(); err != nil || len(pids) != 0 {
				t.Errorf("left over: %v, %v", pids, err)
			}
			var ws unix.WaitStatus
			unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		})
	}
}

func TestOffset(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0 0", 1500 * time.Millisecond: "1 500000000", -1: "-1 999999999", -2 * time.Second: "-2 0"} {
		if got := offset(d); got != want {
			t.Errorf("offset(%v) = %q, want %q", d, got, want)
		}
	}
}
