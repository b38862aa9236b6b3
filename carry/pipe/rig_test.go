package pipe

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"unum/carry"
	"unum/carry/carrytest"
	"unum/sys"
)

// rig is a home, n1, and a guest, n2, with a carrier each.
type rig struct {
	t    testing.TB
	net  *carrytest.Net
	side [2]*rigNode
}

type rigNode struct {
	r      *rig
	node   *carrytest.Node
	keeper *carrytest.Keeper
	dir    string
	env    *carry.Env
	c      *Carrier
}

var ids atomic.Uint64

func newRig(t testing.TB) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: descriptors of other processes are looked at")
	}
	before := openFDs(t)
	goroutines := runtime.NumGoroutine()
	r := &rig{t: t, net: carrytest.NewNet()}
	for i, id := range []string{"n1", "n2"} {
		n := &rigNode{r: r, node: r.net.Node(nodeID(id)), keeper: carrytest.NewKeeper(), dir: t.TempDir()}
		n.env = &carry.Env{
			Node: nodeID(id), Keeper: n.keeper, StateDir: n.dir,
			Log:       slog.New(slog.NewTextHandler(testWriter{t}, nil)),
			Peer:      n.node.Peer,
			Handle:    n.node.Handle,
			Accept:    n.node.Accept,
			WorldPids: worldPids,
			Deputy:    func(int) bool { return false },
		}
		r.side[i] = n
		n.begin()
	}
	t.Cleanup(func() {
		if !t.Failed() {
			r.settled()
		}
		for _, n := range r.side {
			n.c.Close()
			n.node.Reset()
		}
		for _, n := range r.side {
			for _, name := range n.keeper.Names() {
				if name != witnessName && !t.Failed() {
					t.Errorf("%s: %s is still kept", n.env.Node, name)
				}
				n.keeper.Drop(context.Background(), name)
			}
			if names, _ := filepath.Glob(n.dir + "/*"); len(names) > 0 && !t.Failed() {
				t.Errorf("state left: %q", names)
			}
		}
		if t.Failed() {
			return
		}
		var after []string
		eventually(t, func() bool { after = openFDs(t); return len(after) <= len(before) })
		if len(after) > len(before) {
			t.Errorf("descriptors: %d before\n%s\n%d after\n%s", len(before), strings.Join(before, "\n"), len(after), strings.Join(after, "\n"))
		}
		if !eventually(t, func() bool { return runtime.NumGoroutine() <= goroutines }) {
			b := make([]byte, 1<<20)
			t.Errorf("goroutines: %d before, %d after\n%s", goroutines, runtime.NumGoroutine(), b[:runtime.Stack(b, true)])
		}
	})
	return r
}

// settled waits until no half is left.
func (r *rig) settled() {
	r.t.Helper()
	for _, n := range r.side {
		if !eventually(r.t, func() bool {
			n.c.mu.Lock()
			defer n.c.mu.Unlock()
			return len(n.c.halves) == 0
		}) {
			n.c.mu.Lock()
			for k := range n.c.halves {
				r.t.Errorf("%s: %s is not over", n.env.Node, k)
			}
			n.c.mu.Unlock()
		}
	}
}

func (n *rigNode) begin() {
	c, err := New(n.env)
	if err != nil {
		n.r.t.Fatal(err)
	}
	n.c = c
}

// restart drops all that the daemon has in memory.
func (n *rigNode) restart() {
	n.c.Close()
	n.node.Reset()
	n.begin()
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	if os.Getenv("PIPE_LOG") != "" {
		os.Stderr.Write(b)
	}
	w.t.Logf("%s", bytes.TrimSpace(b))
	return len(b), nil
}

// placed is one carried pipe.
type placed struct {
	r     *rig
	kind  byte
	pl    carry.Placement
	d     *carry.Desc
	home  carry.Home
	guest carry.Guest
	body  *os.File // what the body gets
	user  *os.File // the description at home, as the deputy holds it
	runs  bool     // the body runs: home's half is committed
}

func (n *rigNode) kind(dir byte) carry.Kind {
	if dir == 'r' {
		return n.c.Read()
	}
	return n.c.Write()
}

// carry carries the pipe behind user, without a claim.
func (r *rig) carry(dir byte, user *os.File, flags int, records bool) *placed {
	r.t.Helper()
	var st unix.Stat_t
	if err := fstat(user, &st); err != nil {
		r.t.Fatal(err)
	}
	size, err := sys.PipeSize(user)
	if err != nil {
		r.t.Fatal(err)
	}
	dd := desc{Dev: uint64(st.Dev), Ino: st.Ino, Size: size, Records: records}
	if dir == 'r' {
		var all bool
		ended := hungUp(user)
		if dd.Prefill, all, err = r.side[0].c.peek(user, size); err != nil {
			r.t.Fatal(err)
		}
		dd.Ended = ended && all
	}
	data, err := msgpack.Marshal(&dd)
	if err != nil {
		r.t.Fatal(err)
	}
	id := ids.Add(1)
	p := &placed{r: r, kind: dir, user: user,
		pl: carry.Placement{ID: id, Pid: 65600, Home: "n1", Guest: "n2"},
		d:  &carry.Desc{Kind: r.side[0].kind(dir).Name(), Nums: []int{0}, Flags: flags, Data: data}}
	ctx := context.Background()
	if p.home, err = r.side[0].kind(dir).Serve(ctx, p.pl, p.d, dup(r.t, user)); err != nil {
		r.t.Fatal(err)
	}
	if p.guest, err = r.side[1].kind(dir).Land(ctx, p.pl, p.d); err != nil {
		r.t.Fatal(err)
	}
	p.body = p.guest.Local().File
	return p
}

// start runs a body with the carried pipe as its standard input or output.
func (p *placed) start(cmd *exec.Cmd) *exec.Cmd {
	p.r.t.Helper()
	if p.kind == 'r' {
		cmd.Stdin = p.body
	} else {
		cmd.Stdout = p.body
	}
	if cmd.Stderr == nil {
		cmd.Stderr = os.Stderr
	}
	if err := cmd.Start(); err != nil {
		p.r.t.Fatal(err)
	}
	p.begun()
	return cmd
}

// begun says that the body runs; the test's copy of its end is closed.
func (p *placed) begun() {
	p.guest.Started(true)
	p.body.Close()
	p.runs = true
	p.home.Commit()
}

// ended does what the node does when the body has ended. The deputy's copy is
// closed last.
func (p *placed) ended() {
	p.r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := p.guest.Flush(ctx, true); err != nil {
		p.r.t.Errorf("flush: %v", err)
	}
	if err := p.home.Drain(ctx); err != nil {
		p.r.t.Errorf("drain: %v", err)
	}
	if err := p.home.Close(); err != nil {
		p.r.t.Errorf("close at home: %v", err)
	}
	if err := p.guest.Close(); err != nil {
		p.r.t.Errorf("close at the guest: %v", err)
	}
	p.user.Close()
}

func (p *placed) wait(cmd *exec.Cmd) error {
	p.r.t.Helper()
	err := cmd.Wait()
	p.ended()
	return err
}

// restart restarts a node's daemon and resumes its half.
func (p *placed) restart(i int) {
	p.r.t.Helper()
	n := p.r.side[i]
	n.restart()
	ctx := context.Background()
	var err error
	if i == 0 {
		p.home, err = n.kind(p.kind).ResumeHome(ctx, p.pl, p.d, dup(p.r.t, p.user))
	} else {
		p.guest, err = n.kind(p.kind).ResumeGuest(ctx, p.pl, p.d)
	}
	if err == nil && i == 0 && p.runs {
		p.home.Commit()
	}
	if err != nil {
		p.r.t.Fatalf("resume on %s: %v", n.env.Node, err)
	}
}

// userPipe is a pipe at home, with blocking descriptions as a shell makes them.
func userPipe(t testing.TB) (r, w *os.File) {
	t.Helper()
	r, w, err := sys.NewPipe(0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func dup(t testing.TB, f *os.File) *os.File {
	t.Helper()
	nfd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(nfd), f.Name())
}

func openFDs(t testing.TB) []string {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, n := range names {
		l, _ := os.Readlink("/proc/self/fd/" + n.Name())
		out = append(out, n.Name()+" "+l)
	}
	return out
}

// worldPids is every child of the test.
func worldPids() ([]int, error) { return descendants(os.Getpid()), nil }

func descendants(pid int) (out []int) {
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, task := range tasks {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		for _, f := range strings.Fields(string(b)) {
			var c int
			fmt.Sscan(f, &c)
			out = append(out, c)
			out = append(out, descendants(c)...)
		}
	}
	return out
}

func eventually(t testing.TB, cond func() bool) bool {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if cond() {
			return true
		}
	}
	return cond()
}

// noise is n bytes that differ everywhere.
func noise(n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{byte(n)}), n)
}

// digest reads r to its end.
func digest(r io.Reader) (sum string, n int64) {
	h := sha256.New()
	n, _ = io.Copy(h, struct{ io.Reader }{r})
	return fmt.Sprintf("%x", h.Sum(nil)), n
}
