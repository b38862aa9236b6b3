package tty

import (
	"context"
	"testing"

	"golang.org/x/sys/unix"

	"unum/sys"
)

// Whoever flushes its input and then reads gets nothing that was typed before
// the flush: at home the wish stays behind it,
func TestWishStaysBehindFlush(t *testing.T) {
	p, _, err := openPage("", "flush", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close(true)
	h := &home{ctx: context.Background(), page: p, writec: make(chan struct{}, 1), kickc: make(chan struct{}, 1)}
	h.handle(message{Op: opOutput, B: []byte("x")})
	h.handle(message{Op: opWant, N: wantOnce})
	if h.want != wantOnce {
		t.Errorf("a wish waits for output: want %d", h.want)
	}
	h.want = wantNothing
	h.handle(message{Op: opDropIn})
	h.handle(message{Op: opWant, N: wantOnce})
	if h.want != wantNothing || len(h.queue) != 3 {
		t.Errorf("a wish overtook a flush: want %d, queue %+v", h.want, h.queue)
	}
	for ; len(h.queue) > 1; h.queue = h.queue[1:] {
		h.do(h.queue[0], nil, nil)
	}
	if h.do(h.queue[0], nil, nil); h.want != wantOnce {
		t.Errorf("want %d after the flush", h.want)
	}
}

// and at the guest what was flushed is told before the wish.
func TestFlushIsToldFirst(t *testing.T) {
	m, _, err := sys.OpenPty("/dev/pts")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	s, err := sys.OpenSlave(rawFD(m), unix.O_RDWR|unix.O_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l := &Line{ctx: context.Background(), master: m, watchc: make(chan struct{}, 1)}
	if err := sys.TtyFlush(rawFD(s), unix.TCIFLUSH); err != nil {
		t.Fatal(err)
	}
	l.heed()
	l.tell(wantOnce)
	var ops []op
	for _, m := range l.link.keep {
		ops = append(ops, m.Op)
	}
	if len(ops) != 2 || ops[0] != opDropIn || ops[1] != opWant {
		t.Errorf("told %v, want %v", ops, []op{opDropIn, opWant})
	}
}
