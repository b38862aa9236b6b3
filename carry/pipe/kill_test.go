package pipe

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
	"unum/carry/carrytest"
)

// daemonConfig tells a copy of the test to be one node's daemon.
type daemonConfig struct {
	Node   string
	Dir    string // sockets
	State  string
	Dir1   byte // 'r' or 'w'
	Resume bool
	Pl     carry.Placement
	Desc   carry.Desc
}

const daemonEnv = "UNUM_TEST_PIPE_DAEMON"

func TestMain(m *testing.M) {
	if s := os.Getenv(daemonEnv); s != "" {
		if err := daemon(s); err != nil {
			fmt.Fprintln(os.Stderr, "daemon:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if s := os.Getenv(writerEnv); s != "" {
		writeRecords(s)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// daemon serves one half until it is killed. It says "up" when it stands, and
// answers each line of its input when it has done it.
func daemon(s string) error {
	var cfg daemonConfig
	if err := json.Unmarshal([]byte(s), &cfg); err != nil {
		return err
	}
	k, err := carrytest.DialKeeper(filepath.Join(cfg.Dir, cfg.Node+".keeper"))
	if err != nil {
		return err
	}
	e := carrytest.NewEndpoint(unum.NodeID(cfg.Node), cfg.Dir)
	env := &carry.Env{
		Node: unum.NodeID(cfg.Node), Keeper: k, StateDir: cfg.State,
		Log:  slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Peer: e.Peer, Handle: e.Handle, Accept: e.Accept,
		WorldPids: func() ([]int, error) { return nil, nil },
	}
	c, err := New(env)
	if err != nil {
		return err
	}
	kind := c.Read()
	if cfg.Dir1 == 'w' {
		kind = c.Write()
	}
	ctx := context.Background()
	var h carry.Home
	var g carry.Guest
	if cfg.Node == "n1" {
		user, err := k.Take("user")
		if err != nil {
			return err
		}
		if cfg.Resume {
			h, err = kind.ResumeHome(ctx, cfg.Pl, &cfg.Desc, user)
		} else {
			h, err = kind.Serve(ctx, cfg.Pl, &cfg.Desc, user)
		}
		if err != nil {
			return err
		}
		h.Commit()
	} else {
		if cfg.Resume {
			g, err = kind.ResumeGuest(ctx, cfg.Pl, &cfg.Desc)
		} else if g, err = kind.Land(ctx, cfg.Pl, &cfg.Desc); err == nil {
			err = k.Keep(ctx, "body", g.Local().File)
			g.Local().File.Close()
			g.Started(true)
		}
		if err != nil {
			return err
		}
	}
	if err := e.Listen(); err != nil {
		return err
	}
	fmt.Println("up")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		switch in.Text() {
		case "flush":
			err = g.Flush(ctx, true)
		case "drain":
			err = h.Drain(ctx)
		case "close":
			if g != nil {
				err = g.Close()
			} else {
				err = h.Close()
			}
		}
		if err != nil {
			return err
		}
		fmt.Println(in.Text())
	}
	return nil
}

// process is a daemon that is killed and started again.
type process struct {
	t   *testing.T
	cfg daemonConfig
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func (p *process) start() {
	p.t.Helper()
	b, err := json.Marshal(p.cfg)
	if err != nil {
		p.t.Fatal(err)
	}
	p.cmd = exec.Command("/proc/self/exe")
	p.cmd.Env = append(os.Environ(), daemonEnv+"="+string(b))
	p.cmd.Stderr = os.Stderr
	p.in, _ = p.cmd.StdinPipe()
	out, _ := p.cmd.StdoutPipe()
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.out = bufio.NewScanner(out)
	p.expect("up")
	p.cfg.Resume = true
}

func (p *process) expect(s string) {
	p.t.Helper()
	if !p.out.Scan() || p.out.Text() != s {
		p.t.Fatalf("%s: said %q, want %q: %v", p.cfg.Node, p.out.Text(), s, p.out.Err())
	}
}

func (p *process) do(s string) {
	p.t.Helper()
	fmt.Fprintln(p.in, s)
	p.expect(s)
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// ragged hands out its bytes in pieces of odd lengths.
type ragged struct{ io.Reader }

func (r ragged) Read(b []byte) (int, error) {
	n := 1 + rand.IntN(12000)
	if rand.IntN(3) == 0 {
		n = 1 + rand.IntN(100)
	}
	return r.Reader.Read(b[:min(n, len(b))])
}

// Both daemons die by kill -9, over and over, while a stream goes through.
func TestKill9(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	size := sizeOf(256)
	for _, dir := range []byte{'r', 'w'} {
		t.Run(string(dir), func(t *testing.T) { kill9(t, dir, size) })
	}
}

func kill9(t *testing.T, dir byte, size int64) {
	sockets, err := os.MkdirTemp("", "pipe")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(sockets)
	pr, pw := userPipe(t)
	user := pr
	if dir == 'w' {
		user = pw
	}
	var st unix.Stat_t
	if err := fstat(user, &st); err != nil {
		t.Fatal(err)
	}
	name := "pipe-read"
	if dir == 'w' {
		name = "pipe-write"
	}
	data, _ := msgpack.Marshal(&desc{Dev: uint64(st.Dev), Ino: st.Ino, Size: 65536})
	cfg := daemonConfig{Dir: sockets, Dir1: dir,
		Pl:   carry.Placement{ID: ids.Add(1), Pid: 65600, Home: "n1", Guest: "n2"},
		Desc: carry.Desc{Kind: name, Nums: []int{0}, Data: data}}
	var ps [2]*process
	var ks [2]*carrytest.Keeper
	for i, node := range []string{"n1", "n2"} {
		ks[i] = carrytest.NewKeeper()
		l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(sockets, node+".keeper"), Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go carrytest.ServeKeeper(l, ks[i])
		cfg := cfg
		cfg.Node, cfg.State = node, t.TempDir()
		ps[i] = &process{t: t, cfg: cfg}
	}
	ctx := context.Background()
	ks[0].Keep(ctx, "user", user)
	for _, p := range ps {
		p.start()
	}
	defer func() {
		for _, p := range ps {
			p.kill()
		}
	}()
	body, err := ks[1].Take("body")
	if err != nil {
		t.Fatal(err)
	}
	ks[1].Drop(ctx, "body")
	cmd := exec.Command("cat")
	cmd.Stderr = os.Stderr
	var out io.Reader
	in := ragged{noise(size)}
	if dir == 'r' {
		cmd.Stdin = body
		out, _ = cmd.StdoutPipe()
		go func() {
			io.Copy(struct{ io.Writer }{pw}, in)
			pw.Close()
		}()
	} else {
		cmd.Stdout, cmd.Stdin, out = body, in, pr
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	body.Close()
	type result struct {
		sum string
		n   int64
	}
	results, ended := make(chan result, 1), make(chan error, 1)
	go func() {
		sum, n := digest(out)
		results <- result{sum, n}
	}()
	if dir == 'w' {
		go func() { ended <- cmd.Wait() }()
	}
	kills := 0
	timeout := time.After(100 * time.Second)
	finish := func() {
		ps[1].do("flush")
		ps[0].do("drain")
		ps[0].do("close")
		ps[1].do("close")
		user.Close()
		ks[0].Drop(ctx, "user")
	}
	var got result
	for over := false; !over; {
		select {
		case got = <-results:
			over = true
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
			finish()
			got = <-results
			over = true
		case <-time.After(time.Duration(5+rand.IntN(40)) * time.Millisecond):
			p := ps[rand.IntN(2)]
			p.kill()
			p.start()
			kills++
		case <-timeout:
			t.Fatal("it hangs")
		}
	}
	if dir == 'r' {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		finish()
	}
	t.Logf("%d kills", kills)
	if want, _ := digest(noise(size)); got.n != size || got.sum != want {
		t.Errorf("%d bytes with digest %s, want %d with %s", got.n, got.sum, size, want)
	}
	for i, p := range ps {
		if !eventually(t, func() bool {
			names, _ := filepath.Glob(p.cfg.State + "/*")
			kept := ks[i].Names()
			return len(names) == 0 && len(kept) == 1 && kept[0] == witnessName
		}) {
			names, _ := filepath.Glob(p.cfg.State + "/*")
			t.Errorf("%s: left %s, kept %s", p.cfg.Node, names, strings.Join(ks[i].Names(), " "))
		}
		ks[i].Drop(ctx, witnessName)
	}
}
