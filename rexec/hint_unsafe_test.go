package rexec

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// area is memory whose last page is followed by nothing.
type area struct {
	t   testing.TB
	mem []byte
}

func newArea(t testing.TB, pages int) *area {
	mem, err := unix.Mmap(-1, 0, (pages+1)*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
	if err := unix.Mprotect(mem[pages*pageSize:], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	return &area{t, mem[:pages*pageSize]}
}

// put puts a string at an offset, from the end if it is negative.
func (a *area) put(at int, s string) uint64 {
	if at < 0 {
		at += len(a.mem)
	}
	copy(a.mem[at:], s+"\x00")
	return uint64(uintptr(unsafe.Pointer(&a.mem[at])))
}

func TestReadHint(t *testing.T) {
	self := os.Getpid()
	address := func(ptrs []uint64) uint64 { return uint64(uintptr(unsafe.Pointer(&ptrs[0]))) }
	many := func(a *area, n, apart int, last ...uint64) (ptrs []uint64) {
		for i := range n {
			ptrs = append(ptrs, a.put(i*apart, fmt.Sprint("VARIABLE", i, "=x")))
		}
		return append(append(ptrs, last...), 0)
	}
	a := newArea(t, 128)
	for _, c := range []struct {
		name, want string
		ptrs       func() []uint64
	}{
		{"empty", "", func() []uint64 { return []uint64{0} }},
		{"not there", "", func() []uint64 { return many(a, 40, 32) }},
		{"first", "n2", func() []uint64 { return append([]uint64{a.put(9000, "UNUM_NODE=n2")}, many(a, 40, 32)...) }},
		{"last of many", "auto", func() []uint64 { return many(a, 700, 32, a.put(30000, "UNUM_NODE=auto")) }},
		{"over a page's end", "n3", func() []uint64 { return many(a, 40, 32, a.put(5*pageSize-4, "UNUM_NODE=n3")) }},
		{"value over a page's end", "n3", func() []uint64 { return many(a, 40, 32, a.put(7*pageSize-11, "UNUM_NODE=n3")) }},
		{"at the end of the memory", "n4", func() []uint64 { return many(a, 40, 32, a.put(-13, "UNUM_NODE=n4")) }},
		{"shorter, at the end of the memory", "", func() []uint64 { return many(a, 40, 32, a.put(-5, "UNUM")) }},
		{"after one at the end of the memory", "n5", func() []uint64 { return many(a, 40, 32, a.put(-5, "UNUM"), a.put(20000, "UNUM_NODE=n5")) }},
		{"in more pages than are read", "n6", func() []uint64 { return many(a, 90, pageSize, a.put(100*pageSize, "UNUM_NODE=n6")) }},
		{"in many pages", "n6", func() []uint64 { return many(a, 40, pageSize+7, a.put(50*pageSize, "UNUM_NODE=n6")) }},
		{"no value", "", func() []uint64 { return many(a, 3, 32, a.put(20000, "UNUM_NODE=")) }},
		{"another's name", "", func() []uint64 { return many(a, 3, 32, a.put(20000, "UNUM_NODES=n2"), a.put(21000, "XUNUM_NODE=n2")) }},
		{"the first of two", "n7", func() []uint64 { return many(a, 3, 32, a.put(22000, "UNUM_NODE=n7"), a.put(21000, "UNUM_NODE=n8")) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			clear(a.mem)
			ptrs := c.ptrs()
			if got := readHint(self, address(ptrs)); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
			runtime.KeepAlive(ptrs)
		})
	}
	end := newArea(t, 1)
	from := len(end.mem) - 3*8
	at := uint64(uintptr(unsafe.Pointer(&end.mem[from])))
	ptrs := unsafe.Slice((*uint64)(unsafe.Pointer(&end.mem[from])), 3)
	clear(a.mem)
	ptrs[0], ptrs[1] = a.put(100, "HOME=/"), a.put(200, "UNUM_NODE=n9")
	if got := readHint(self, at); got != "n9" {
		t.Errorf("an array at the end of the memory: %q", got)
	}
	if got := readHint(self, 0); got != "" {
		t.Errorf("no array: %q", got)
	}
	if got := readHint(self, 8); got != "" {
		t.Errorf("a wild one: %q", got)
	}
}

// What was at an address before is a guess where to look, and no more.
func TestReadHintAgain(t *testing.T) {
	a := newArea(t, 8)
	array := newArea(t, 1) // not on a stack, which moves
	ptrs := unsafe.Slice((*uint64)(unsafe.Pointer(&array.mem[0])), 4)
	at := uint64(uintptr(unsafe.Pointer(&ptrs[0])))
	look := func(want string) {
		t.Helper()
		if got := readHint(os.Getpid(), at); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	ptrs[0], ptrs[1] = a.put(100, "HOME=/"), a.put(pageSize+200, "UNUM_NODE=n1")
	look("n1")
	look("n1")
	a.put(pageSize+200, "UNUM_NODE=n2") // in place
	look("n2")
	a.put(pageSize+200, "UNUM_NODO=n2")
	look("")
	ptrs[1] = a.put(3*pageSize+200, "UNUM_NODE=n3") // elsewhere
	look("n3")
	ptrs[1], ptrs[2] = a.put(pageSize+200, "HOME=/"), a.put(5*pageSize-4, "UNUM_NODE=n4") // more
	look("n4")
	ptrs[1], ptrs[2] = 0, 0 // fewer
	look("")
	ptrs[0] = a.put(-13, "UNUM_NODE=n5")
	if err := unix.Mprotect(a.mem[:6*pageSize], unix.PROT_NONE); err != nil { // gone
		t.Fatal(err)
	}
	look("n5")
}

func BenchmarkReadHint(b *testing.B) {
	a := newArea(b, 2)
	var ptrs []uint64
	for i := range 36 {
		ptrs = append(ptrs, a.put(i*48, fmt.Sprint("VARIABLE", i, "=something")))
	}
	ptrs = append(ptrs, 0)
	at := uint64(uintptr(unsafe.Pointer(&ptrs[0])))
	for b.Loop() {
		readHint(os.Getpid(), at)
	}
	runtime.KeepAlive(ptrs)
}
