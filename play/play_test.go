package play

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"unum"
	"unum/node/config"
	"unum/node/supervise"
	"unum/world"
	"unum/world/cgroup"
	"unum/world/worldtest"
)

// The test binary is also the program that a play runs, and a play that gets
// killed.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case world.Stage1Command:
			os.Exit(world.Stage1())
		case world.Stage2Command:
			os.Exit(world.Stage2())
		case "init":
			os.Exit(supervise.Main(os.Args[3]))
		case "daemon":
			fmt.Fprintln(os.Stderr, fakeDaemon(os.Args[3]))
			os.Exit(1)
		case "fs":
			unix.Pause()
		case "play-and-wait":
			playAndWait(os.Args[2], os.Args[3])
		}
	}
	os.Exit(m.Run())
}

// fakeDaemon makes a world, then says its name to whoever connects.
func fakeDaemon(path string) error {
	c, err := config.Load(path)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return err
	}
	wc := world.Config{Node: c.Node, Hostname: c.Hostname, Range: unum.RangeOf(c.Index), Root: c.Root,
		RunDir: c.RunDir, PubDir: c.PubDir(), Cgroup: cgroup.Open(c.CgroupPath),
		Stub: worldtest.Stub(), Filter: worldtest.Filter()}
	w, err := world.Attach(context.Background(), wc)
	if errors.Is(err, unum.ErrNoProcess) {
		w, err = world.Start(context.Background(), wc)
	}
	if err != nil {
		return err
	}
	defer w.Close()
	b, err := supervise.OpenBeat(c.StateDir())
	if err != nil {
		return err
	}
	go func() {
		for {
			b.Touch()
			time.Sleep(time.Second)
		}
	}()
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		fmt.Fprintf(conn, "%s\n", c.Node)
		conn.Close()
	}
}

func playAndWait(base, name string) {
	p, err := Start(context.Background(), Config{Name: name, Nodes: 2, base: base})
	if err == nil {
		err = p.WaitReady(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("ready")
	unix.Pause()
}

func testConfig(t *testing.T) Config {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	name := fmt.Sprintf("test-%d-%s", os.Getpid(), strings.ToLower(strings.TrimPrefix(t.Name(), "Test")))
	c := Config{Name: name, Nodes: 3, base: filepath.Join(t.TempDir(), "play")}
	t.Cleanup(func() {
		for _, l := range leftovers(c.base, name) {
			t.Error("left over:", l)
		}
		if _, err := os.Stat(c.base); err == nil {
			t.Errorf("left over: directory %s", c.base)
		}
	})
	return c
}

func startPlay(t *testing.T, c Config) *Play {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	began := time.Now()
	p, err := Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		began := time.Now()
		if err := p.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		t.Logf("stopped in %v", time.Since(began))
	})
	t.Logf("started in %v", time.Since(began))
	if err := p.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("ready in %v", time.Since(began))
	return p
}

// greet connects from one node to another, and returns what it says.
func greet(p *Play, from, to int) (string, error) {
	type result struct {
		s   string
		err error
	}
	c := make(chan result)
	go func() {
		runtime.LockOSThread() // the thread ends with its namespace
		s, err := func() (string, error) {
			ns, err := netns.GetFromPid(p.nodes[from].Pid)
			if err != nil {
				return "", err
			}
			defer ns.Close()
			if err := netns.Set(ns); err != nil {
				return "", err
			}
			// Not net.Dial: it may make its socket on another thread.
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return "", err
			}
			f := os.NewFile(uintptr(fd), "socket")
			defer f.Close()
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Usec: 300000})
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2})
			sa := &unix.SockaddrInet4{Port: Port, Addr: [4]byte{10, 77, 0, byte(to + 1)}}
			if err := unix.Connect(fd, sa); err != nil {
				return "", err
			}
			b, err := io.ReadAll(f)
			return strings.TrimSpace(string(b)), err
		}()
		c <- result{s, err}
	}()
	r := <-c
	return r.s, r.err
}

func TestPlay(t *testing.T) {
	c := testConfig(t)
	c.CPUs = 0.5
	var trusted int
	c.Trust = func(_ context.Context, nodes []*config.Config) error {
		for _, n := range nodes {
			if err := os.WriteFile(n.TLS.Key, []byte("key"), 0o600); err != nil {
				return err
			}
			trusted++
		}
		return nil
	}
	p := startPlay(t, c)
	if trusted != 3 {
		t.Errorf("%d nodes have keys", trusted)
	}
	t.Run("namespaces", func(t *testing.T) {
		for _, kind := range []string{"net", "pid", "mnt"} {
			seen := map[string]string{}
			for _, who := range append(p.Nodes(), Node{ID: "outside", Pid: os.Getpid()}) {
				ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", who.Pid, kind))
				if err != nil {
					t.Fatal(err)
				}
				if other := seen[ns]; other != "" {
					t.Errorf("%s and %s share %s", who.ID, other, ns)
				}
				seen[ns] = string(who.ID)
			}
		}
	})
	t.Run("network", func(t *testing.T) {
		for from := range 3 {
			for to := range 3 {
				if got, err := greet(p, from, to); err != nil || got != string(p.nodes[to].ID) {
					t.Errorf("from n%d to n%d: %q, %v", from+1, to+1, got, err)
				}
			}
		}
		ifs, _ := net.Interfaces()
		for _, i := range ifs {
			if addrs, _ := i.Addrs(); strings.Contains(fmt.Sprint(i.Name, addrs), "10.77.") || i.Name == "unum0" {
				t.Errorf("outside there is %s %v", i.Name, addrs)
			}
		}
		if err := p.SetLink(2, false); err != nil {
			t.Fatal(err)
		}
		if got, err := greet(p, 0, 2); err == nil {
			t.Errorf("n3 answers %q with its link down", got)
		}
		if err := p.SetLink(2, true); err != nil {
			t.Fatal(err)
		}
		// Whoever asked for the address meanwhile asks again after a second.
		var got string
		var err error
		for deadline := time.Now().Add(5 * time.Second); got != "n3" && time.Now().Before(deadline); {
			got, err = greet(p, 0, 2)
		}
		if got != "n3" {
			t.Errorf("n3 with its link up again: %q, %v", got, err)
		}
	})
	t.Run("worlds", func(t *testing.T) {
		for i, n := range p.Nodes() {
			pids, err := cgroup.Open(n.Cgroup + "/world").Procs()
			if err != nil || len(pids) != 1 {
				t.Fatalf("world of %s: %v, %v", n.ID, pids, err)
			}
			// nsenter's child enters no cgroup; what it sees is the world's.
			out, err := exec.Command("nsenter", "-a", "-t", fmt.Sprint(pids[0]), "sh", "-c",
				"hostname; cat /run/unum/node; mkdir -p /run/met; touch /run/met/$(cat /run/unum/node); ls -d /run/unum/play; echo $$").CombinedOutput()
			f := strings.Fields(string(out))
			var pid unum.Pid
			fmt.Sscan(f[len(f)-1], &pid)
			if f[0] != p.Name() || f[1] != string(n.ID) || !strings.Contains(string(out), "No such file") || !unum.RangeOf(unum.NodeIndex(i)).Contains(pid) {
				t.Errorf("inside %s: %v\n%s", n.ID, err, out)
			}
		}
		if met, _ := filepath.Glob(filepath.Join(p.Dir(), "run/met/*")); len(met) != 3 {
			t.Errorf("in /run met %q", met)
		}
	})
	t.Run("cap", func(t *testing.T) {
		pids, err := cgroup.Open(p.nodes[0].Cgroup).Procs()
		if err != nil || len(pids) < 4 { // init, daemon, fs, the world's pid 1
			t.Fatalf("processes of n1: %v, %v", pids, err)
		}
		for _, pid := range pids {
			groups, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
			for line := range strings.Lines(string(groups)) {
				f := strings.SplitN(strings.TrimSpace(line), ":", 3)
				if capped := f[1] == "" || slices.Contains(strings.Split(f[1], ","), "cpu"); capped && !strings.HasPrefix(f[2], "/"+p.nodes[0].Cgroup) {
					t.Errorf("process %d of n1 is in %s", pid, line)
				}
			}
		}
	})
	t.Run("play in play", func(t *testing.T) {
		pids, _ := cgroup.Open(p.nodes[1].Cgroup + "/world").Procs()
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("nsenter", "-a", "-t", fmt.Sprint(pids[0]), exe, "play-and-wait", c.base, "inner").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "inside the world of node n2") || strings.Count(string(out), "\n") != 1 {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("same name", func(t *testing.T) {
		c := c
		if _, err := Start(context.Background(), c); !errors.Is(err, unum.ErrExists) {
			t.Errorf("second play of the name: %v", err)
		}
	})
	t.Run("lost node", func(t *testing.T) {
		if err := p.Kill(2); err != nil {
			t.Fatal(err)
		}
		if got, err := greet(p, 0, 2); err == nil {
			t.Errorf("n3 answers %q after its death", got)
		}
		if got, err := greet(p, 0, 1); err != nil || got != "n2" {
			t.Errorf("n2 after the death of n3: %q, %v", got, err)
		}
	})
}

func TestTwoAtOnce(t *testing.T) {
	c := testConfig(t)
	c.Nodes = 1
	a := startPlay(t, c)
	d := c
	d.Name += "b"
	b := startPlay(t, d)
	for _, p := range []*Play{a, b} {
		if got, err := greet(p, 0, 0); err != nil || got != "n1" {
			t.Errorf("%s: %q, %v", p.Name(), got, err)
		}
	}
	in, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", a.nodes[0].Pid))
	if other, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", b.nodes[0].Pid)); in == other {
		t.Error("both are in one network")
	}
	if err := a.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got, err := greet(b, 0, 0); err != nil || got != "n1" {
		t.Errorf("after the end of the other: %q, %v", got, err)
	}
}

// A play that is killed takes its nodes along, and the next one clears the
// rest.
func TestKilledPlay(t *testing.T) {
	c := testConfig(t)
	cmd := exec.Command("/proc/self/exe", "play-and-wait", c.base, c.Name)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Fatalf("the play says %q, %v", line, err)
	}
	g := cgroup.Open(cgroupName(c.Name))
	if pids, err := g.Procs(); err != nil || len(pids) < 8 { // init, daemon, fs, pid 1; twice
		t.Fatalf("processes of the play: %v, %v", pids, err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	var pids []int
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if pids, _ = g.Procs(); len(pids) == 0 {
			break
		}
	}
	if len(pids) != 0 {
		t.Errorf("alive after the death of the play: %v", pids)
	}
	if len(leftovers(c.base, c.Name)) == 0 {
		t.Error("a killed play left nothing to be cleared, which this test is about")
	}
	d := c
	d.Name += "next"
	d.Nodes = 1
	startPlay(t, d)
	for _, l := range leftovers(c.base, c.Name) {
		t.Error("not cleared:", l)
	}
}

// The group of a play in a container, whose /run is another, is left alone as
// long as something runs in it, and its name is taken.
func TestForeignPlay(t *testing.T) {
	c := testConfig(t)
	name := "foreign-" + strconv.Itoa(os.Getpid())
	unlock, err := lockBase(context.Background(), Base) // another play would clear the group
	if err != nil {
		t.Fatal(err)
	}
	g, err := cgroup.Create(cgroupName(name), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Remove(context.Background()) })
	if !slices.Contains(names(Base), name) {
		t.Error("an empty group is not seen as a leftover")
	}
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	err = g.Enrol(cmd.Process.Pid)
	unlock()
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(names(Base), name) {
		t.Error("the group of a play elsewhere would be cleared")
	}
	c.Name = name
	if p, err := Start(context.Background(), c); !errors.Is(err, unum.ErrExists) {
		if err == nil {
			p.Stop(context.Background())
		}
		t.Errorf("a second play of the name: %v", err)
	}
}

// A play that has just begun, below another /run or with other mounts, is not
// cleared as if it had been killed: its group is claimed before anything runs
// in it. Its name is taken.
func TestForeignPlayBegins(t *testing.T) {
	c := testConfig(t)
	c.Nodes = 1
	name := "begins-" + strconv.Itoa(os.Getpid())
	held, err := cgroup.Claim(cgroupName(name))
	if err != nil {
		t.Fatal(err)
	}
	g := cgroup.Open(cgroupName(name))
	t.Cleanup(func() { g.Remove(context.Background()) })
	if err := os.MkdirAll(filepath.Join(c.base, name), 0o755); err != nil { // its lock is below a mount
		t.Fatal(err)
	}
	startPlay(t, c)
	for _, path := range []string{g.Dir(), filepath.Join(c.base, name)} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("another play has cleared it: %v", err)
		}
	}
	d := c
	d.Name = name
	if p, err := Start(context.Background(), d); !errors.Is(err, unum.ErrExists) {
		if err == nil {
			p.Stop(context.Background())
		}
		t.Errorf("a second play of the name: %v", err)
	}
	held.Close()
	e := c
	e.Name += "next"
	startPlay(t, e)
	if left := leftovers(c.base, name); len(left) != 0 {
		t.Errorf("killed, and not cleared: %v", left)
	}
}

func TestRefusals(t *testing.T) {
	c := testConfig(t)
	for what, spoil := range map[string]func(*Config){
		"0 nodes: a cluster has 1 to 64":  func(c *Config) { c.Nodes = 0 },
		"65 nodes: a cluster has 1 to 64": func(c *Config) { c.Nodes = 65 },
		"name \"a/b\"":                    func(c *Config) { c.Name = "a/b" },
		"the least is 0.1":                func(c *Config) { c.CPUs = 0.01 },
		"root /nowhere is no directory":   func(c *Config) { c.Root = "/nowhere" },
		"start n1: fork/exec /nowhere":    func(c *Config) { c.Exe = "/nowhere" },
		"disk full": func(c *Config) {
			c.Trust = func(context.Context, []*config.Config) error { return errors.New("disk full") }
		},
	} {
		c := c
		spoil(&c)
		p, err := Start(context.Background(), c)
		if err == nil {
			p.Stop(context.Background())
			t.Errorf("no refusal: %s", what)
			continue
		}
		if s := err.Error(); !strings.Contains(s, what) || strings.Contains(s, "\n") {
			t.Errorf("refused with %q, want %q", s, what)
		}
	}
}

func TestNotReady(t *testing.T) {
	c := testConfig(t)
	c.Nodes, c.Exe = 1, "/bin/false"
	p, err := Start(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop(context.Background())
	if err := p.WaitReady(context.Background()); err == nil || !strings.Contains(err.Error(), "n1") {
		t.Errorf("WaitReady: %v", err)
	}
}

func TestSaid(t *testing.T) {
	for line, want := range map[string]string{
		`time=2026-11-22T22:52:29.370Z level=ERROR msg="supervisor cannot run" err="make mounts private: \"x\""`: `supervisor cannot run: make mounts private: "x"`,
		`time=2026-11-22T22:52:29.370Z level=INFO msg=up node=n1 err=nothing`:                                    "up: nothing",
		"unum: port: address already in use":                                                                     "port: address already in use",
		"panic: msg=1":                                                                                           "panic: msg=1",
		"":                                                                                                       "",
	} {
		if got := said(line); got != want {
			t.Errorf("%s\nsays %s\nwant %s", line, got, want)
		}
	}
}
