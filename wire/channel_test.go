package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"unum"
)

// both runs f over the wire and within one endpoint.
func both(t *testing.T, f func(t *testing.T, c *cluster, from, to *Endpoint)) {
	t.Run("wire", func(t *testing.T) {
		c := newCluster(t)
		f(t, c, c.node("a"), c.node("b"))
	})
	t.Run("self", func(t *testing.T) {
		c := newCluster(t)
		a := c.node("a")
		f(t, c, a, a)
	})
}

func TestChannelOrder(t *testing.T) {
	both(t, func(t *testing.T, c *cluster, a, b *Endpoint) {
		ctx := within(t, 20*time.Second)
		b.Accept("double", func(ctx context.Context, from unum.NodeID, hello []byte, ch unum.Channel) {
			defer ch.Close()
			ch.Send(ctx, append([]byte("hello "), hello...))
			for {
				m, err := ch.Recv(ctx)
				if err != nil {
					return
				}
				if ch.Send(ctx, append(m, m...)) != nil {
					return
				}
			}
		})
		ch, err := a.Peer(b.Node()).Open(ctx, "double", []byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		const n = 3000
		size := func(i int) int { return []int{8, 100, 5000, 60000}[i%4] }
		go func() {
			for i := range n {
				m := make([]byte, size(i))
				binary.LittleEndian.PutUint64(m, uint64(i))
				if err := ch.Send(ctx, m); err != nil {
					t.Errorf("send %d: %v", i, err)
					return
				}
				clear(m) // Send does not keep it
			}
		}()
		if m, err := ch.Recv(ctx); err != nil || string(m) != "hello x" {
			t.Fatalf("%q, %v", m, err)
		}
		for i := range n {
			m, err := ch.Recv(ctx)
			if err != nil || len(m) != 2*size(i) || binary.LittleEndian.Uint64(m) != uint64(i) {
				t.Fatalf("message %d: %d bytes, %v", i, len(m), err)
			}
		}
		ch.Close()
		if _, err := ch.Recv(ctx); !errors.Is(err, ErrChannelClosed) {
			t.Errorf("recv after close: %v", err)
		}
		if err := ch.Send(ctx, nil); !errors.Is(err, ErrChannelClosed) {
			t.Errorf("send after close: %v", err)
		}
	})
}

func TestChannelEnd(t *testing.T) {
	both(t, func(t *testing.T, c *cluster, a, b *Endpoint) {
		ctx := within(t, 10*time.Second)
		closed := make(chan struct{})
		b.Accept("bye", func(ctx context.Context, _ unum.NodeID, _ []byte, ch unum.Channel) {
			ch.Send(ctx, []byte("1"))
			ch.Send(ctx, bytes.Repeat([]byte("2"), unum.MaxMessage))
			ch.Close()
			close(closed)
		})
		ch, err := a.Peer(b.Node()).Open(ctx, "bye", nil)
		if err != nil {
			t.Fatal(err)
		}
		<-closed
		for i, n := range []int{1, unum.MaxMessage} {
			if m, err := ch.Recv(ctx); err != nil || len(m) != n {
				t.Errorf("message %d: %d bytes, %v", i, len(m), err)
			}
		}
		if _, err := ch.Recv(ctx); err != io.EOF {
			t.Errorf("after the peer's close: %v", err)
		}
		if err := ch.Send(ctx, []byte("x")); err != io.ErrClosedPipe {
			t.Errorf("send after the peer's close: %v", err)
		}
		if err := ch.Send(ctx, make([]byte, unum.MaxMessage+1)); err == nil {
			t.Error("too large a message was sent")
		}
		ch, err = a.Peer(b.Node()).Open(ctx, "nobody", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ch.Recv(ctx); !errors.Is(err, unum.ErrNoMethod) {
			t.Errorf("unknown service: %v", err)
		}
	})
}

// A receiver that does not receive stops its sender, and nobody else.
func TestSlowChannel(t *testing.T) {
	both(t, func(t *testing.T, c *cluster, a, b *Endpoint) {
		ctx := within(t, 20*time.Second)
		read := make(chan struct{})
		total := make(chan int, 1)
		b.Accept("slow", func(ctx context.Context, _ unum.NodeID, _ []byte, ch unum.Channel) {
			<-read
			n := 0
			for {
				m, err := ch.Recv(ctx)
				if err != nil {
					break
				}
				n += len(m)
			}
			total <- n
		})
		b.Accept("echo", func(ctx context.Context, _ unum.NodeID, _ []byte, ch unum.Channel) {
			for {
				m, err := ch.Recv(ctx)
				if err != nil {
					return
				}
				ch.Send(ctx, m)
			}
		})
		slow, err := a.Peer(b.Node()).Open(ctx, "slow", nil)
		if err != nil {
			t.Fatal(err)
		}
		var fast [4]unum.Channel // on both connections
		for i := range fast {
			if fast[i], err = a.Peer(b.Node()).Open(ctx, "echo", nil); err != nil {
				t.Fatal(err)
			}
		}
		msg := make([]byte, 100<<10)
		sent := 0
		for {
			short, stop := context.WithTimeout(ctx, 100*time.Millisecond)
			err := slow.Send(short, msg)
			stop()
			if err != nil {
				if err != context.DeadlineExceeded {
					t.Fatal(err)
				}
				break
			}
			sent += len(msg)
			if sent > 16<<20 {
				t.Fatal("no end to what a slow receiver takes")
			}
		}
		if sent < window {
			t.Errorf("blocked after %d bytes", sent)
		}
		for i := range 100 {
			for _, ch := range fast {
				if err := ch.Send(ctx, msg[:1000*i]); err != nil {
					t.Fatal(err)
				}
				if m, err := ch.Recv(ctx); err != nil || len(m) != 1000*i {
					t.Fatal(len(m), err)
				}
			}
		}
		close(read)
		for range 30 {
			if err := slow.Send(ctx, msg); err != nil {
				t.Fatal(err)
			}
			sent += len(msg)
		}
		slow.Close()
		if n := <-total; n != sent {
			t.Errorf("sent %d, received %d", sent, n)
		}
	})
}

func TestManySenders(t *testing.T) {
	both(t, func(t *testing.T, c *cluster, a, b *Endpoint) {
		ctx := within(t, 20*time.Second)
		sum := make(chan int, 1)
		b.Accept("count", func(ctx context.Context, _ unum.NodeID, _ []byte, ch unum.Channel) {
			n := 0
			for {
				if _, err := ch.Recv(ctx); err != nil {
					sum <- n
					return
				}
				n++
			}
		})
		ch, err := a.Peer(b.Node()).Open(ctx, "count", nil)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				for range 100 {
					if err := ch.Send(ctx, make([]byte, 30000)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		ch.Close()
		if n := <-sum; n != 1000 {
			t.Errorf("%d messages of 1000", n)
		}
	})
}

func TestChannelBreaks(t *testing.T) {
	c := newCluster(t)
	a, b := c.node("a"), c.node("b")
	ctx := within(t, 10*time.Second)
	ended := make(chan error, 10)
	b.Accept("sink", func(ctx context.Context, _ unum.NodeID, _ []byte, ch unum.Channel) {
		ch.Send(ctx, []byte("ready"))
		for {
			if _, err := ch.Recv(ctx); err != nil {
				ended <- err
				return
			}
		}
	})
	for range 3 {
		ch, err := a.Peer("b").Open(ctx, "sink", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ch.Recv(ctx); err != nil {
			t.Fatal(err)
		}
		c.cut("a")
		if _, err := ch.Recv(ctx); !errors.Is(err, unum.ErrLinkLost) {
			t.Errorf("recv: %v", err)
		}
		if err := ch.Send(ctx, []byte("x")); !errors.Is(err, unum.ErrLinkLost) {
			t.Errorf("send: %v", err)
		}
		if err := <-ended; !errors.Is(err, unum.ErrLinkLost) {
			t.Errorf("the peer's end: %v", err)
		}
	}
}

func TestChannelsOfClosedEndpoint(t *testing.T) {
	both(t, func(t *testing.T, c *cluster, a, b *Endpoint) {
		ctx := within(t, 10*time.Second)
		b.Accept("sink", func(ctx context.Context, _ unum.NodeID, _ []byte, ch unum.Channel) {
			ch.Recv(ctx)
		})
		ch, err := a.Peer(b.Node()).Open(ctx, "sink", nil)
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan error, 1)
		go func() { _, err := ch.Recv(ctx); got <- err }()
		a.Close()
		if err := <-got; !errors.Is(err, unum.ErrLinkLost) {
			t.Errorf("recv: %v", err)
		}
		if _, err := a.Peer(b.Node()).Open(ctx, "sink", nil); !errors.Is(err, ErrClosed) {
			t.Errorf("open: %v", err)
		}
	})
}
