package rexec

import (
	"os"
	"slices"
	"strings"
	"testing"
	"unsafe"
)

func TestReadVector(t *testing.T) {
	far := make([]byte, 1<<20)
	str := func(at int, s string) uint64 {
		copy(far[at:], s+"\x00")
		return uint64(uintptr(unsafe.Pointer(&far[at])))
	}
	long := strings.Repeat("x", 100<<10)
	want := []string{"near", "far", "", "same page", long, "near"}
	first := str(10, "near")
	ptrs := []uint64{first, str(900<<10, "far"), str(20<<10, ""), str(900<<10+100, "same page"), str(200<<10, long), first, 0}
	got, err := readVector(os.Getpid(), uint64(uintptr(unsafe.Pointer(&ptrs[0]))))
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%d strings, %v", len(got), err)
	}
	if n := len(placesOf(ptrs[:6])); n != 4 {
		t.Errorf("%d places, want 4", n)
	}
	if got, err := readVector(os.Getpid(), 0); err != nil || got != nil {
		t.Errorf("no vector: %q, %v", got, err)
	}
}
