package fsnode

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
	"unum/carry/file"
	"unum/sys"
)

// The test binary, started again with this variable, is a file server, so
// that bodies and server are processes of their own, as on a node.
const (
	serveEnv  = "FSNODE_TEST_STATE"
	resendEnv = "FSNODE_TEST_NORESEND"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(serveEnv); dir != "" {
		go func() { // the test is gone, however it ended
			os.Stdin.Read(make([]byte, 1))
			os.Exit(1)
		}()
		log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
		mount, err := sys.InheritedFuseMount(firstFile)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if err := Serve(context.Background(), Config{StateDir: dir, Mount: mount, Log: log, noResend: os.Getenv(resendEnv) != ""}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// pair is two nodes: home n1, where the test's own descriptors are, and guest
// n2, where its children run as bodies. Both daemons are this process; the
// file server of n2 is another.
type pair struct {
	t      testing.TB
	dir    string
	mount  *sys.FuseMount
	fsproc *exec.Cmd
	fs     *file.FS
	keep   *keeper
	gave   chan []int // what deputies were told to close
	nodes  map[unum.NodeID]*fakeNode
	kinds  map[unum.NodeID]*file.Kinds

	mu   sync.Mutex
	next uint64
}

type fakeNode struct {
	mu       sync.Mutex
	handlers map[string]unum.Handler
}

type fakePeer struct {
	p        *pair
	from, to unum.NodeID
}

func (f fakePeer) Node() unum.NodeID { return f.to }
func (f fakePeer) Call(ctx context.Context, method string, req []byte) ([]byte, error) {
	n := f.p.nodes[f.to]
	n.mu.Lock()
	h := n.handlers[method]
	n.mu.Unlock()
	if h == nil {
		return nil, unum.ErrNoMethod
	}
	type result struct {
		b   []byte
		err error
	}
	ch := make(chan result, 1)
	go func() {
		b, err := h(ctx, f.from, append([]byte(nil), req...))
		ch <- result{b, err}
	}()
	select {
	case r := <-ch:
		return r.b, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
func (f fakePeer) Open(context.Context, string, []byte) (unum.Channel, error) {
	return nil, unum.ErrNoMethod
}

// keeper keeps duplicates in this process, which outlives the file server.
type keeper struct {
	mu sync.Mutex
	m  map[string]*os.File
}

func (k *keeper) Keep(_ context.Context, name string, f *os.File) error {
	d, err := dupFile(f)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.m[name] = d
	return nil
}
func (k *keeper) Take(name string) (*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.m[name] == nil {
		return nil, fs.ErrNotExist
	}
	return dupFile(k.m[name])
}
func (k *keeper) Drop(_ context.Context, name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if f := k.m[name]; f != nil {
		f.Close()
		delete(k.m, name)
	}
	return nil
}

func dupFile(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	fl, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	unix.SetNonblock(fd, false)
	d := os.NewFile(uintptr(fd), f.Name())
	if fl&unix.O_NONBLOCK != 0 {
		unix.SetNonblock(fd, true)
	}
	return d, nil
}

func newPair(t testing.TB) *pair {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts FUSE")
	}
	p := &pair{
		t: t, dir: stateDir(t), keep: &keeper{m: map[string]*os.File{}}, gave: make(chan []int, 100),
		nodes: map[unum.NodeID]*fakeNode{}, kinds: map[unum.NodeID]*file.Kinds{},
	}
	var err error
	if p.mount, err = sys.NewFuseMount("test"); err != nil {
		t.Fatal(err)
	}
	p.startServer()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	p.nodes["n1"], p.nodes["n2"] = &fakeNode{handlers: map[string]unum.Handler{}}, &fakeNode{handlers: map[string]unum.Handler{}}
	p.fs = file.NewFS(file.FSConfig{Log: log, Socket: file.SocketPath(p.dir), Peer: p.peer("n2")})
	for id := range p.nodes {
		p.startKinds(id)
	}
	t.Cleanup(func() {
		for _, k := range p.kinds {
			k.Close()
		}
		p.fs.Close()
		p.fsproc.Process.Kill()
		p.fsproc.Wait()
		p.mount.Close()
		for _, f := range p.keep.m {
			f.Close()
		}
	})
	return p
}

// stateDir is on tmpfs, as a node's is.
func stateDir(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "fsnode")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (p *pair) startKinds(id unum.NodeID) {
	n := p.nodes[id]
	env := &carry.Env{
		Node: id, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Keeper: p.keep, StateDir: p.dir, Peer: p.peer(id),
		Handle:    func(m string, h unum.Handler) { n.mu.Lock(); n.handlers[m] = h; n.mu.Unlock() },
		Accept:    func(string, unum.Acceptor) {},
		WorldPids: func() ([]int, error) { return descendants(os.Getpid()), nil },
		Deputy:    func(int) bool { return false },
		Release: func(_ context.Context, _ carry.Placement, nums []int) error {
			p.gave <- nums
			return nil
		},
	}
	p.kinds[id] = file.New(file.Config{Env: env, FS: p.fs})
}

// restartGuest ends n2's daemon and starts its successor.
func (p *pair) restartGuest(live ...*carried) {
	p.t.Helper()
	p.kinds["n2"].Close()
	p.fs.Close()
	p.fs = file.NewFS(file.FSConfig{Socket: file.SocketPath(p.dir), Peer: p.peer("n2")})
	p.startKinds("n2")
	for _, c := range live {
		g, err := p.kinds["n2"].All()[c.kind].ResumeGuest(context.Background(), c.pl, c.d)
		if err != nil {
			p.t.Fatal(err)
		}
		c.guest = g
	}
}

func (p *pair) startServer() {
	p.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		p.t.Fatal(err)
	}
	p.fsproc = exec.Command(exe)
	p.fsproc.Env = append(os.Environ(), serveEnv+"="+p.dir)
	p.fsproc.Stderr, p.fsproc.ExtraFiles = os.Stderr, p.mount.Files()
	if _, err := p.fsproc.StdinPipe(); err != nil {
		p.t.Fatal(err)
	}
	if err := p.fsproc.Start(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pair) peer(from unum.NodeID) func(unum.NodeID) (unum.Peer, error) {
	return func(to unum.NodeID) (unum.Peer, error) { return fakePeer{p, from, to}, nil }
}

// descendants are the processes below pid, and pid.
func descendants(pid int) []int {
	out := []int{pid}
	for i := 0; i < len(out); i++ {
		dir := "/proc/" + strconv.Itoa(out[i]) + "/task"
		tasks, _ := os.ReadDir(dir)
		for _, task := range tasks {
			b, _ := os.ReadFile(dir + "/" + task.Name() + "/children")
			for _, w := range strings.Fields(string(b)) {
				c, _ := strconv.Atoi(w)
				out = append(out, c)
			}
		}
	}
	return out
}

// fdOf describes a descriptor of this process as a caller's.
func fdOf(t testing.TB, f *os.File) *carry.FD {
	t.Helper()
	fd := &carry.FD{Nums: []int{int(f.Fd())}}
	if err := unix.Fstat(int(f.Fd()), &fd.Stat); err != nil {
		t.Fatal(err)
	}
	fd.Link, _ = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(b), "\n") {
		w := strings.Fields(l)
		if len(w) < 2 {
			continue
		}
		switch w[0] {
		case "pos:":
			fd.Pos, _ = strconv.ParseInt(w[1], 10, 64)
		case "flags:":
			n, _ := strconv.ParseInt(w[1], 8, 64)
			fd.Flags = int(n) &^ unix.O_CLOEXEC
		}
	}
	return fd
}

// carried is one description of the test carried to n2.
type carried struct {
	p     *pair
	home  carry.Home
	guest carry.Guest
	file  *os.File // the body's end
	kind  int
	pl    carry.Placement
	d     *carry.Desc
}

// carry takes f to n2 by the first kind that claims it; the kinds path and
// device are left out, as the test itself shares everything.
func (p *pair) carry(f *os.File) *carried {
	p.t.Helper()
	return p.carryFrom(f, p.kinds["n1"], p.kinds["n2"], "n1", "n2")
}

func (p *pair) carryFrom(f *os.File, from, to *file.Kinds, home, guest unum.NodeID) *carried {
	p.t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	p.mu.Lock()
	p.next++
	pl := carry.Placement{ID: p.next, Pid: 65600, Home: home, Guest: guest}
	p.mu.Unlock()
	var d *carry.Desc
	var err error
	fd := fdOf(p.t, f)
	for i, k := range from.All() {
		if i < 2 {
			continue
		}
		if d, err = k.Claim(ctx, &carry.Proc{HostPid: os.Getpid(), Pid: pl.Pid}, fd); err != nil {
			p.t.Fatal(err)
		}
		if d == nil {
			continue
		}
		dup, err := dupFile(f)
		if err != nil {
			p.t.Fatal(err)
		}
		c := &carried{p: p, kind: i, pl: pl, d: d}
		if c.home, err = k.Serve(ctx, pl, d, dup); err != nil {
			p.t.Fatal(err)
		}
		if c.guest, err = to.All()[i].Land(ctx, pl, d); err != nil {
			p.t.Fatal(err)
		}
		c.file = c.guest.Local().File
		return c
	}
	p.t.Fatalf("nobody carries %s", fd.Link)
	return nil
}

// started is told once the body has its descriptors.
func (c *carried) started() {
	c.guest.Started(true)
	c.file.Close()
	c.home.Commit()
}

// ended goes through what follows the end of a body.
func (c *carried) ended() {
	c.p.t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	if err := c.guest.Flush(ctx, true); err != nil {
		c.p.t.Error(err)
	}
	if err := c.guest.Close(); err != nil {
		c.p.t.Error(err)
	}
	if err := c.home.Drain(ctx); err != nil {
		c.p.t.Error(err)
	}
	if err := c.home.Close(); err != nil {
		c.p.t.Error(err)
	}
}

// body runs a program at n2 with these standard streams carried; nil is
// /dev/null. It returns when it has ended and home knows.
func (p *pair) body(in, out *os.File, name string, args ...string) error {
	p.t.Helper()
	wait := p.start(in, out, name, args...)
	return wait()
}

func (p *pair) start(in, out *os.File, name string, args ...string) (wait func() error) {
	p.t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 30*time.Second)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = os.Stderr
	var all []*carried
	if in != nil {
		c := p.carry(in)
		cmd.Stdin = c.file
		all = append(all, c)
	}
	if out != nil {
		c := p.carry(out)
		cmd.Stdout = c.file
		all = append(all, c)
	}
	err := cmd.Start()
	if err != nil {
		p.t.Error(err)
	}
	for _, c := range all {
		c.started()
	}
	return func() error {
		defer stop()
		err := cmd.Wait()
		for _, c := range all {
			c.ended()
		}
		return err
	}
}

// command is a program that is killed with the test.
func command(t testing.TB, name string, args ...string) *exec.Cmd {
	ctx, stop := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(stop)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = os.Stderr
	return cmd
}
