package wire

import (
	"context"
	"testing"
	"time"

	"unum"
)

func BenchmarkCall64(b *testing.B) {
	c := newCluster(b)
	x, y := c.node("a"), c.node("b")
	y.Handle("echo", echo)
	p := x.Peer("b")
	ctx := context.Background()
	req := make([]byte, 64)
	p.Call(ctx, "echo", req)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Call(ctx, "echo", req); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCall64Parallel(b *testing.B) {
	c := newCluster(b)
	x, y := c.node("a"), c.node("b")
	y.Handle("echo", echo)
	p := x.Peer("b")
	ctx := context.Background()
	req := make([]byte, 64)
	p.Call(ctx, "echo", req)
	b.ReportAllocs()
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := p.Call(ctx, "echo", req); err != nil {
				b.Error(err)
			}
		}
	})
}

func BenchmarkCall4MiB(b *testing.B) {
	c := newCluster(b)
	x, y := c.node("a"), c.node("b")
	y.Handle("len", func(_ context.Context, _ unum.NodeID, req []byte) ([]byte, error) { return nil, nil })
	p := x.Peer("b")
	ctx := context.Background()
	req := make([]byte, 4<<20)
	p.Call(ctx, "len", nil)
	b.SetBytes(int64(len(req)))
	for b.Loop() {
		if _, err := p.Call(ctx, "len", req); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkChannelRoundTrip64(b *testing.B) {
	c := newCluster(b)
	x, y := c.node("a"), c.node("b")
	ctx := context.Background()
	y.Accept("echo", func(ctx context.Context, _ unum.NodeID, _ []byte, ch unum.Channel) {
		for {
			m, err := ch.Recv(ctx)
			if err != nil {
				return
			}
			ch.Send(ctx, m)
		}
	})
	ch, err := x.Peer("b").Open(ctx, "echo", nil)
	if err != nil {
		b.Fatal(err)
	}
	msg := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		ch.Send(ctx, msg)
		if _, err := ch.Recv(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBulk128K(b *testing.B) { benchBulk(b, 1) }

func BenchmarkBulk128KTwo(b *testing.B) { benchBulk(b, 2) }

func benchBulk(b *testing.B, n int) {
	c := newCluster(b)
	x, y := c.node("a"), c.node("b")
	ctx := within(b, time.Minute)
	y.Accept("sink", func(ctx context.Context, _ unum.NodeID, _ []byte, ch unum.Channel) {
		for {
			if m, err := ch.Recv(ctx); err != nil || len(m) == 1 {
				ch.Send(ctx, nil)
				return
			}
		}
	})
	var chs []unum.Channel
	for range n {
		ch, err := x.Peer("b").Open(ctx, "sink", nil)
		if err != nil {
			b.Fatal(err)
		}
		chs = append(chs, ch)
	}
	msg := make([]byte, 128<<10)
	b.SetBytes(int64(len(msg)))
	i := 0
	for b.Loop() {
		if err := chs[i%n].Send(ctx, msg); err != nil {
			b.Fatal(err)
		}
		i++
	}
	for _, ch := range chs {
		ch.Send(ctx, msg[:1])
		if _, err := ch.Recv(ctx); err != nil {
			b.Fatal(err)
		}
	}
}
