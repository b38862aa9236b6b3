package wire

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"unum"
)

// cluster is a set of endpoints on loopback that know each other.
type cluster struct {
	t  testing.TB
	ca *Authority

	mu    sync.Mutex
	addrs map[unum.NodeID]string
	conns map[unum.NodeID][]net.Conn // dialed, by who dialed
}

func newCluster(t testing.TB) *cluster {
	ca, err := NewAuthority("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return &cluster{t: t, ca: ca, addrs: map[unum.NodeID]string{}, conns: map[unum.NodeID][]net.Conn{}}
}

func (c *cluster) config(id unum.NodeID) Config {
	cert, err := c.ca.Issue(id, time.Hour)
	if err != nil {
		c.t.Fatal(err)
	}
	cfg := Config{
		Node: id, Incarnation: unum.Incarnation(rand.Uint64()), Cert: cert, CA: c.ca.Pool(),
		Protocol: "unum/1", Version: "v1",
		Lookup: func(id unum.NodeID) (string, bool) {
			c.mu.Lock()
			defer c.mu.Unlock()
			a, ok := c.addrs[id]
			return a, ok
		},
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			var d net.Dialer
			conn, err := d.DialContext(ctx, network, addr)
			if err == nil {
				c.mu.Lock()
				c.conns[id] = append(c.conns[id], conn)
				c.mu.Unlock()
			}
			return conn, err
		},
	}
	if os.Getenv("WIRE_LOG") != "" {
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("self", id)
	}
	return cfg
}

// cut breaks the TCP connections that a node has dialed.
func (c *cluster) cut(id unum.NodeID) {
	c.mu.Lock()
	conns := c.conns[id]
	c.conns[id] = nil
	c.mu.Unlock()
	for _, x := range conns {
		x.(*net.TCPConn).SetLinger(0)
		x.Close()
	}
}

// start serves cfg on a fresh port.
func (c *cluster) start(cfg Config) *Endpoint {
	c.t.Helper()
	e, err := New(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	c.addrs[cfg.Node] = l.Addr().String()
	c.mu.Unlock()
	go e.Serve(l)
	c.t.Cleanup(func() { e.Close() })
	return e
}

func (c *cluster) node(id unum.NodeID) *Endpoint { c.t.Helper(); return c.start(c.config(id)) }

func within(t testing.TB, d time.Duration) context.Context {
	ctx, stop := context.WithTimeout(context.Background(), d)
	t.Cleanup(stop)
	return ctx
}

func echo(_ context.Context, _ unum.NodeID, req []byte) ([]byte, error) { return req, nil }
