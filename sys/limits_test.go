package sys

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReadLimits(t *testing.T) {
	got, err := ReadLimits(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	text, err := readLimits(os.Getpid())
	if err != nil || text != got {
		t.Errorf("%v from the text, %v; %v from prlimit", text, err, got)
	}
	for i := range got {
		var want unix.Rlimit
		if err := unix.Getrlimit(i, &want); err != nil {
			t.Fatal(err)
		}
		if got[i] != want {
			t.Errorf("%s: %+v, getrlimit says %+v", limitNames[i], got[i], want)
		}
	}
	if _, err := ReadLimits(1 << 30); err == nil {
		t.Error("limits of nobody")
	}
}
