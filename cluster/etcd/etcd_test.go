package etcd

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"unum"
	"unum/cluster"
	"unum/cluster/clustertest"
)

// voter opens n1 in dir.
func voter(t *testing.T, dir string) *Store {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	s, err := Open(ctx, config("n1", dir))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func config(id unum.NodeID, dir string) Config {
	c := Config{Node: id, TTL: time.Second}
	if id == "n1" {
		c.Voter, c.Fast, c.Dir, c.Sockets = true, true, dir+"/etcd", dir+"/run"
	} else {
		c.Voters = []unum.NodeID{"n1"}
		c.Dial = func(ctx context.Context, id unum.NodeID) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", config("n1", dir).ClientSocket())
		}
	}
	if os.Getenv("ETCD_LOG") != "" {
		c.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("self", id)
	}
	return c
}

// tempDir is short enough for unix sockets, and on tmpfs where there is one.
func tempDir(t *testing.T) string {
	t.Helper()
	base := "/dev/shm"
	if _, err := os.Stat(base); err != nil {
		base = ""
	}
	dir, err := os.MkdirTemp(base, "unum-etcd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestSuite(t *testing.T) {
	clustertest.Run(t, func(t *testing.T) clustertest.Env {
		dir := tempDir(t)
		return clustertest.Env{TTL: time.Second, Open: func(id unum.NodeID) cluster.Store {
			if id == "n1" {
				return voter(t, dir)
			}
			s, err := Open(context.Background(), config(id, dir))
			if err != nil {
				t.Fatal(err)
			}
			return s
		}}
	})
}

// The voter's daemon is restarted: its own record and those of others stay,
// and clients go on.
func TestVoterRestarts(t *testing.T) {
	dir := tempDir(t)
	ctx, stop := context.WithTimeout(context.Background(), 15*time.Second)
	defer stop()
	began := time.Now()
	n1 := voter(t, dir)
	l1, err := n1.Register(ctx, cluster.Registration{ID: "n1", Addr: "a:1", Incarnation: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("first registration %v after the start", time.Since(began))
	c2 := config("n2", dir)
	c2.TTL = 3 * time.Second // the client waits 0.5 s before it renews again
	n2, err := Open(ctx, c2)
	if err != nil {
		t.Fatal(err)
	}
	defer n2.Close()
	l2, err := n2.Register(ctx, cluster.Registration{ID: "n2", Addr: "b:1", Incarnation: 1})
	if err != nil {
		t.Fatal(err)
	}
	w, err := n2.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := n1.Close(); err != nil {
			t.Error(err)
		}
		<-l1.Lost()
		began = time.Now()
		n1 = voter(t, dir)
		l1, err = n1.Register(ctx, cluster.Registration{ID: "n1", Addr: "a:1", Incarnation: l1.Node().Incarnation + 1})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("registration %v after the restart", time.Since(began))
		if n := l1.Node(); n.Index != 0 || n.Epoch != 1 {
			t.Errorf("after the restart: %+v", n)
		}
	}
	defer n1.Close()
	time.Sleep(3500 * time.Millisecond) // more than the TTL
	select {
	case <-l2.Lost():
		t.Errorf("n2's lease is lost: %v", l2.Err())
	default:
	}
	if err := n2.SetState(ctx, "n2", 1, unum.Up); err != nil {
		t.Error(err)
	}
	for n := range w {
		if len(n) == 2 && n[1].State == unum.Up && n[0].Incarnation == 3 {
			return
		}
	}
	t.Error("the watch did not go on")
}

// A voter's process is killed by SIGKILL in the middle of writing: what was
// answered is there afterwards, also without fsync, and clients go on.
func TestVoterKilled(t *testing.T) {
	dir := tempDir(t)
	child := func() (*exec.Cmd, *bufio.Scanner) {
		cmd := exec.Command(os.Args[0], "-test.run=^TestVoterProcess$")
		cmd.Env = append(os.Environ(), "UNUM_VOTER_DIR="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill() })
		return cmd, bufio.NewScanner(out)
	}
	ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
	defer stop()
	n2, err := Open(ctx, config("n2", dir))
	if err != nil {
		t.Fatal(err)
	}
	defer n2.Close()
	for round := range 3 {
		cmd, lines := child()
		var last string
		for n := 0; n < 200 && lines.Scan(); n++ {
			last = lines.Text()
			if n == 50 { // another node, while it writes
				began := time.Now()
				l, err := n2.Register(ctx, cluster.Registration{ID: "n2", Addr: "b", Incarnation: unum.Incarnation(round + 1)})
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				t.Logf("n2 registered in %v", time.Since(began))
			}
		}
		cmd.Process.Kill()
		cmd.Wait()
		if last == "" {
			t.Fatal("the voter did not start")
		}
		began := time.Now()
		s := voter(t, dir)
		if _, _, err := s.Get(ctx, last); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		t.Logf("first read %v after the kill", time.Since(began))
		n, err := s.Nodes(ctx)
		if err != nil || len(n) != 2 || n[0].ID != "n1" || n[0].Epoch != 1 || n[1].ID != "n2" || n[1].Incarnation != unum.Incarnation(round+1) {
			t.Errorf("round %d: %+v, %v", round, n, err)
		}
		s.Close()
	}
}

// TestVoterProcess is the process that TestVoterKilled kills.
func TestVoterProcess(t *testing.T) {
	dir := os.Getenv("UNUM_VOTER_DIR")
	if dir == "" {
		t.Skip("is run by TestVoterKilled")
	}
	s := voter(t, dir)
	ctx := context.Background()
	if _, err := s.Register(ctx, cluster.Registration{ID: "n1", Addr: "a", Incarnation: unum.Incarnation(os.Getpid())}); err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		key := fmt.Sprintf("%d/%d", os.Getpid(), i)
		if _, err := s.Swap(ctx, key, 0, []byte(key)); err != nil {
			t.Fatal(err)
		}
		fmt.Println(key)
	}
}

// The field that calm reaches for is there.
func TestCalm(t *testing.T) {
	s := voter(t, tempDir(t))
	if !calm(s.server.Server, calmTick) {
		t.Error("etcd's ticks cannot be slowed down: look at its raftNode")
	}
}
