package sys

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestTeeLeavesTheSourceAlone(t *testing.T) {
	r, w, err := NewPipe(1<<16, unix.O_NONBLOCK, unix.O_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	sr, sw, err := NewPipe(1<<16, unix.O_NONBLOCK, unix.O_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer sr.Close()
	defer sw.Close()
	if _, err := Tee(r, sw, 100); err != unix.EAGAIN {
		t.Fatalf("tee of an empty pipe: %v, want EAGAIN", err)
	}
	if _, err := WriteNow(w, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if n, err := Tee(r, sw, 100); n != 5 || err != nil {
		t.Fatalf("tee: %d, %v", n, err)
	}
	b := make([]byte, 10)
	if n, _ := ReadNow(sr, b); string(b[:n]) != "hello" {
		t.Fatalf("teed %q", b[:n])
	}
	if n, _ := PipeUnread(w); n != 5 {
		t.Fatalf("%d bytes left in the source, want 5", n)
	}
	if n, err := Splice(r, sw, 3); n != 3 || err != nil {
		t.Fatalf("splice: %d, %v", n, err)
	}
	p, err := ReopenPipe(w, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if n, _ := ReadNow(p, b); string(b[:n]) != "lo" {
		t.Fatalf("read %q through the reopened end", b[:n])
	}
}
