package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"unum"
)

func TestCall(t *testing.T) {
	before := runtime.NumGoroutine()
	c := newCluster(t)
	a, b := c.node("a"), c.node("b")
	ctx := within(t, 10*time.Second)
	a.Handle("who", func(_ context.Context, from unum.NodeID, req []byte) ([]byte, error) {
		return fmt.Appendf(nil, "%s asks a: %s", from, req), nil
	})
	b.Handle("echo", echo)
	for _, n := range []int{0, 1, 64, partSize - 1, partSize, partSize + 1, 4 << 20} {
		req := bytes.Repeat([]byte("unum"), n/4+1)[:n]
		res, err := a.Peer("b").Call(ctx, "echo", req)
		if err != nil || !bytes.Equal(res, req) {
			t.Fatalf("call of %d bytes: %d bytes, %v", n, len(res), err)
		}
	}
	for _, e := range []*Endpoint{a, b} {
		res, err := e.Peer("a").Call(ctx, "who", []byte("x"))
		if want := string(e.Node()) + " asks a: x"; err != nil || string(res) != want {
			t.Errorf("got %q, %v, want %q", res, err, want)
		}
		if _, err := e.Peer("b").Call(ctx, "nothing", nil); !errors.Is(err, unum.ErrNoMethod) {
			t.Errorf("unknown method: %v", err)
		}
	}
	if _, err := a.Peer("c").Call(ctx, "echo", nil); !errors.Is(err, unum.ErrNoNode) {
		t.Errorf("unknown node: %v", err)
	}
	a.Close()
	b.Close()
	if _, err := a.Peer("b").Call(ctx, "echo", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("call of a closed endpoint: %v", err)
	}
	for i := 0; runtime.NumGoroutine() > before; i++ {
		if i > 200 {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines before, %d after\n%s", before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestErrorsCross(t *testing.T) {
	c := newCluster(t)
	a, b := c.node("a"), c.node("b")
	ctx := within(t, 10*time.Second)
	var send error
	b.Handle("fail", func(context.Context, unum.NodeID, []byte) ([]byte, error) { return nil, send })
	call := func() error { _, err := a.Peer("b").Call(ctx, "fail", nil); return err }
	for name, s := range unum.Sentinels {
		send = s
		if err := call(); err != s {
			t.Errorf("%s arrives as %v", name, err)
		}
	}
	send = syscall.ENOTDIR
	if err := call(); err != syscall.ENOTDIR {
		t.Errorf("errno arrives as %v", err)
	}
	send = &unum.Error{Op: "place", Node: "b", Pid: 65601, Path: "fd 7",
		Err: fmt.Errorf("%w: io_uring: %w", unum.ErrStaysHome, syscall.EBADF)}
	err := call()
	if err == nil || err.Error() != send.Error() || !errors.Is(err, unum.ErrStaysHome) || !errors.Is(err, syscall.EBADF) || errors.Is(err, unum.ErrDenied) {
		t.Errorf("wrapped error arrives as %v", err)
	}
	send = errors.New("just words \xff")
	if err := call(); err == nil || err.Error() != send.Error() {
		t.Errorf("words arrive as %v", err)
	}
}

func TestCallsAtOnce(t *testing.T) {
	c := newCluster(t)
	a, b := c.node("a"), c.node("b")
	ctx := within(t, 20*time.Second)
	a.Handle("echo", echo)
	b.Handle("echo", echo)
	var wg sync.WaitGroup
	for i := range 200 {
		from, to := a, unum.NodeID("b")
		if i%2 == 0 {
			from, to = b, "a"
		}
		wg.Go(func() {
			for j := range 20 {
				req := bytes.Repeat([]byte{byte(i), byte(j)}, 1+rand.IntN(100))
				if i < 4 {
					req = bytes.Repeat(req, 1000)
				}
				res, err := from.Peer(to).Call(ctx, "echo", req)
				if err != nil || !bytes.Equal(res, req) {
					t.Errorf("call %d.%d: %v", i, j, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// Connections are cut under calls all the time; each handler must run once.
func TestCallSurvivesCuts(t *testing.T) {
	c := newCluster(t)
	a, b := c.node("a"), c.node("b")
	ctx := within(t, 20*time.Second)
	var runs atomic.Int64
	b.Handle("count", func(_ context.Context, _ unum.NodeID, req []byte) ([]byte, error) {
		runs.Add(1)
		if len(req) > 0 && req[0] == 0 {
			time.Sleep(time.Duration(rand.IntN(8)) * time.Millisecond)
		}
		return req, nil
	})
	stop := make(chan struct{})
	var cutter sync.WaitGroup
	cuts := 0
	cutter.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(10+rand.IntN(60)) * time.Millisecond):
				c.cut("a")
				cuts++
			}
		}
	})
	var wg sync.WaitGroup
	const callers, each = 20, 60
	for i := range callers {
		wg.Go(func() {
			for j := range each {
				req := []byte{byte(i % 2), byte(i), byte(j)}
				if i == 7 {
					req = append(req, make([]byte, 300<<10)...)
				}
				res, err := a.Peer("b").Call(ctx, "count", req)
				if err != nil || !bytes.Equal(res, req) {
					t.Errorf("call %d.%d: %v", i, j, err)
					return
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	cutter.Wait()
	if n := runs.Load(); n != callers*each {
		t.Errorf("%d calls ran %d times", callers*each, n)
	}
	if cuts == 0 {
		t.Errorf("only %d cuts", cuts)
	}
	// Every answer is forgotten in the end.
	for range lazyMax {
		a.Peer("b").Call(ctx, "count", []byte{1})
	}
	s := b.remote("a").session
	s.mu.Lock()
	n := len(s.calls)
	s.mu.Unlock()
	if n > 2*lazyMax {
		t.Errorf("%d answers are still kept", n)
	}
}

func TestCancel(t *testing.T) {
	c := newCluster(t)
	a, b := c.node("a"), c.node("b")
	started, ended := make(chan struct{}), make(chan struct{})
	b.Handle("wait", func(ctx context.Context, _ unum.NodeID, _ []byte) ([]byte, error) {
		close(started)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	})
	ctx, stop := context.WithCancel(within(t, 10*time.Second))
	go func() { <-started; stop() }()
	if _, err := a.Peer("b").Call(ctx, "wait", nil); err != context.Canceled {
		t.Errorf("cancelled call: %v", err)
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("the handler goes on")
	}
}

func TestPeerRestarts(t *testing.T) {
	c := newCluster(t)
	a := c.node("a")
	type event struct {
		inc unum.Incarnation
		up  bool
	}
	events := make(chan event, 16)
	a.OnPeer(func(_ unum.NodeID, inc unum.Incarnation, up bool) { events <- event{inc, up} })
	cfg := c.config("b")
	b := c.start(cfg)
	b.Handle("wait", func(ctx context.Context, _ unum.NodeID, _ []byte) ([]byte, error) {
		<-ctx.Done()
		return nil, errors.New("the first life answers")
	})
	ctx := within(t, 10*time.Second)
	got := make(chan string, 1)
	go func() {
		res, err := a.Peer("b").Call(ctx, "wait", []byte("x"))
		got <- fmt.Sprintf("%s %v", res, err)
	}()
	if ev := <-events; !ev.up || ev.inc != cfg.Incarnation {
		t.Fatalf("event %+v", ev)
	}
	b.Close()
	cfg2 := cfg
	cfg2.Incarnation++
	e2, err := New(cfg2)
	if err != nil {
		t.Fatal(err)
	}
	defer e2.Close()
	e2.Handle("wait", func(_ context.Context, _ unum.NodeID, req []byte) ([]byte, error) { return []byte("second life"), nil })
	c.mu.Lock()
	addr := c.addrs["b"]
	c.mu.Unlock()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	go e2.Serve(l)
	if s := <-got; s != "second life <nil>" {
		t.Errorf("the call got %q", s)
	}
	if ev := <-events; ev.up {
		t.Errorf("event %+v", ev)
	}
	if ev := <-events; !ev.up || ev.inc != cfg2.Incarnation {
		t.Errorf("event %+v", ev)
	}
}

// A daemon opens its port before it has its handlers.
func TestHold(t *testing.T) {
	c := newCluster(t)
	a := c.node("a")
	cfg := c.config("b")
	cfg.Hold = true
	b := c.start(cfg)
	ctx := within(t, 10*time.Second)
	var wg sync.WaitGroup
	for _, e := range []*Endpoint{a, b} {
		wg.Go(func() {
			if res, err := e.Peer("b").Call(ctx, "echo", []byte("x")); err != nil || string(res) != "x" {
				t.Errorf("call: %q, %v", res, err)
			}
		})
		wg.Go(func() {
			if _, err := e.Peer("b").Call(ctx, "nothing", nil); !errors.Is(err, unum.ErrNoMethod) {
				t.Errorf("unknown method: %v", err)
			}
		})
		wg.Go(func() {
			ch, err := e.Peer("b").Open(ctx, "bye", nil)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := ch.Recv(ctx); err != io.EOF {
				t.Errorf("channel: %v", err)
			}
		})
	}
	time.Sleep(50 * time.Millisecond)
	b.Handle("echo", echo)
	b.Accept("bye", func(_ context.Context, _ unum.NodeID, _ []byte, ch unum.Channel) { ch.Close() })
	b.Ready()
	wg.Wait()
}

func TestStrangersAreRefused(t *testing.T) {
	c := newCluster(t)
	a := c.node("a")
	a.Handle("echo", echo)
	ctx := within(t, 10*time.Second)
	other := newCluster(t)
	cfg := other.config("b")
	cfg.Lookup = c.config("x").Lookup
	b := c.start(cfg)
	b.Handle("echo", echo)
	if _, err := b.Peer("a").Call(ctx, "echo", nil); !errors.Is(err, unum.ErrDenied) {
		t.Errorf("stranger calls: %v", err)
	}
	if _, err := a.Peer("b").Call(ctx, "echo", nil); !errors.Is(err, unum.ErrDenied) {
		t.Errorf("stranger is called: %v", err)
	}
	// Right authority at the server, wrong one at the client: only the server sees it.
	cfg.CA = c.ca.Pool()
	d := c.start(cfg)
	if _, err := d.Peer("a").Call(ctx, "echo", nil); !errors.Is(err, unum.ErrDenied) {
		t.Errorf("stranger who trusts us calls: %v", err)
	}
	if _, err := d.Peer("a").Open(ctx, "echo", nil); !errors.Is(err, unum.ErrDenied) {
		t.Errorf("stranger who trusts us opens: %v", err)
	}
	// The address of one node answers with the certificate of another.
	c.mu.Lock()
	c.addrs["z"] = c.addrs["a"]
	c.mu.Unlock()
	e := c.node("e")
	if _, err := e.Peer("z").Call(ctx, "echo", nil); !errors.Is(err, unum.ErrDenied) {
		t.Errorf("wrong node answers: %v", err)
	}
}

func TestVersions(t *testing.T) {
	c := newCluster(t)
	a := c.node("a")
	a.Handle("echo", echo)
	ctx := within(t, 10*time.Second)
	cfg := c.config("b")
	cfg.Version = "v2"
	b := c.start(cfg)
	_, err := b.Peer("a").Call(ctx, "echo", nil)
	if !errors.Is(err, unum.ErrVersion) || !strings.Contains(err.Error(), "b runs v2, a runs v1") {
		t.Errorf("other version: %v", err)
	}
	cfg = c.config("d")
	cfg.Protocol = "unum/2"
	if _, err := c.start(cfg).Peer("a").Call(ctx, "echo", nil); !errors.Is(err, unum.ErrVersion) {
		t.Errorf("other protocol: %v", err)
	}
}

func TestLost(t *testing.T) {
	c := newCluster(t)
	a := c.node("a")
	var epoch atomic.Uint64
	epoch.Store(3)
	cfg := c.config("b")
	cfg.Epoch = func() unum.Epoch { return unum.Epoch(epoch.Load()) }
	b := c.start(cfg)
	ctx := within(t, 10*time.Second)
	a.Handle("echo", echo)
	running, cancelled := make(chan struct{}, 2), make(chan struct{}, 2)
	hold := func(ctx context.Context, _ unum.NodeID, _ []byte) ([]byte, error) {
		running <- struct{}{}
		<-ctx.Done()
		cancelled <- struct{}{}
		return nil, nil
	}
	a.Handle("hold", hold)
	b.Handle("hold", hold)
	b.Handle("echo", echo)
	b.Accept("sink", func(ctx context.Context, _ unum.NodeID, _ []byte, ch unum.Channel) { ch.Recv(ctx) })
	ch, err := a.Peer("b").Open(ctx, "sink", nil)
	if err != nil {
		t.Fatal(err)
	}
	errs := make(chan error, 2)
	go func() { _, err := a.Peer("b").Call(ctx, "hold", nil); errs <- err }()
	go b.Peer("a").Call(ctx, "hold", nil)
	<-running
	<-running
	a.Lost("b", 3)
	if err := <-errs; !errors.Is(err, unum.ErrNodeLost) || !errors.Is(err, unum.ErrUnanswered) {
		t.Errorf("running call: %v", err)
	}
	if _, err := ch.Recv(ctx); !errors.Is(err, unum.ErrLinkLost) || !errors.Is(err, unum.ErrNodeLost) {
		t.Errorf("channel: %v", err)
	}
	<-cancelled // what b had asked of a
	if _, err := a.Peer("b").Call(ctx, "echo", nil); !errors.Is(err, unum.ErrNodeLost) || errors.Is(err, unum.ErrUnanswered) {
		t.Errorf("new call: %v", err)
	}
	if _, err := a.Peer("b").Open(ctx, "sink", nil); !errors.Is(err, unum.ErrNodeLost) {
		t.Errorf("new channel: %v", err)
	}
	if a.Tell("b", "x", nil) {
		t.Error("told a lost node")
	}
	if _, err := b.Peer("a").Call(ctx, "echo", nil); !errors.Is(err, unum.ErrStaleEpoch) {
		t.Errorf("call of the lost life: %v", err)
	}
	epoch.Store(4)
	time.Sleep(redialMax) // refusals are remembered for that long
	if _, err := b.Peer("a").Call(ctx, "echo", nil); err != nil {
		t.Errorf("call of the new life: %v", err)
	}
	if _, err := a.Peer("b").Call(ctx, "echo", nil); err != nil {
		t.Errorf("call to the new life: %v", err)
	}
	a.Lost("b", 3) // said late
	if _, err := a.Peer("b").Call(ctx, "echo", nil); err != nil {
		t.Errorf("call after late news of the old life: %v", err)
	}
	a.Lost("b", 4)
	a.Back("b", 4) // not a new life
	if _, err := a.Peer("b").Call(ctx, "echo", nil); !errors.Is(err, unum.ErrNodeLost) {
		t.Errorf("call after the second loss: %v", err)
	}
	epoch.Store(5)
	a.Back("b", 5)
	if _, err := a.Peer("b").Call(ctx, "echo", nil); err != nil {
		t.Errorf("call to the third life: %v", err)
	}
}

// A life of which nobody has told is followed by the next one: it ends before
// that asks for anything.
func TestNextLife(t *testing.T) {
	c := newCluster(t)
	lives := make(chan unum.Epoch, 10)
	cfg := c.config("a")
	cfg.Next = func(id unum.NodeID, epoch unum.Epoch) { lives <- epoch }
	a := c.start(cfg)
	ctx := within(t, 10*time.Second)
	a.Handle("echo", func(_ context.Context, _ unum.NodeID, req []byte) ([]byte, error) {
		return []byte(fmt.Sprint(len(lives))), nil
	})
	cfg = c.config("b")
	cfg.Epoch = func() unum.Epoch { return 3 }
	b := c.start(cfg)
	running := make(chan struct{})
	b.Handle("hold", func(ctx context.Context, _ unum.NodeID, _ []byte) ([]byte, error) {
		close(running)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	if got, err := b.Peer("a").Call(ctx, "echo", nil); err != nil || string(got) != "0" {
		t.Fatalf("the first life: %s, %v", got, err)
	}
	held := make(chan error, 1)
	go func() { _, err := a.Peer("b").Call(ctx, "hold", nil); held <- err }()
	<-running
	b.Close()
	cfg = c.config("b")
	cfg.Epoch = func() unum.Epoch { return 4 }
	cfg.Incarnation++
	b = c.start(cfg)
	if got, err := b.Peer("a").Call(ctx, "echo", nil); err != nil || string(got) != "1" {
		t.Errorf("the second life: %s, %v", got, err)
	}
	if err := <-held; !errors.Is(err, unum.ErrNodeLost) {
		t.Errorf("asked of the first life: %v", err)
	}
}

func TestTell(t *testing.T) {
	c := newCluster(t)
	a, b := c.node("a"), c.node("b")
	got := make(chan string, 1000)
	b.HandleTell("beat", func(from unum.NodeID, msg []byte) { got <- string(from) + string(msg) })
	deadline := time.Now().Add(5 * time.Second)
	for !a.Tell("b", "beat", []byte("!")) {
		if time.Now().After(deadline) {
			t.Fatal("never connected")
		}
		time.Sleep(time.Millisecond)
	}
	if s := <-got; s != "a!" {
		t.Errorf("got %q", s)
	}
}

func TestRoutes(t *testing.T) {
	c := newCluster(t)
	a, b := c.node("a"), c.node("b")
	ctx := within(t, 10*time.Second)
	// A second endpoint of node a behind its port: the file server.
	cfg := c.config("a")
	cfg.Protocol = "unum-fs/1"
	fs, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	fs.Handle("echo", echo)
	a.Route("unum-fs/1", fs.ServeConn)
	cfg = c.config("b")
	cfg.Protocol = "unum-fs/1"
	fs2, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer fs2.Close()
	if res, err := fs2.Peer("a").Call(ctx, "echo", []byte("x")); err != nil || string(res) != "x" {
		t.Errorf("file servers: %q, %v", res, err)
	}
	// A plain service behind TLS.
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	go func() {
		for {
			x, err := plain.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(x, x); x.(*net.TCPConn).CloseWrite(); x.Close() }()
		}
	}()
	for _, alpn := range []string{"", "unum-etcd"} {
		a.RouteTLS(alpn, func() (net.Conn, error) { return net.Dial("tcp", plain.Addr().String()) })
		x, err := b.Dial(ctx, "a", alpn)
		if err != nil {
			t.Fatal(err)
		}
		msg := bytes.Repeat([]byte("pipe"), 100000)
		go func() { x.Write(msg); x.(*tls.Conn).CloseWrite() }()
		got, err := io.ReadAll(x)
		if err != nil || !bytes.Equal(got, msg) {
			t.Errorf("piped %d of %d bytes, %v", len(got), len(msg), err)
		}
		x.Close()
	}
	if _, err := b.Dial(ctx, "a", "nobody"); err == nil {
		t.Error("an unknown protocol was accepted")
	}
}
