package rexec

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"unum"
)

// The ledger survives the daemon, and its ring forgets the oldest only.
func TestLedger(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger")
	open := func() *ledger {
		l, err := openLedger(path)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := open()
	l.add(7, 1)
	l.add(8, 2)
	l.add(7, 3)
	l = open()
	l.add(7, 4)
	if got := l.of(7); !slices.Equal(got, []uint64{1, 3, 4}) {
		t.Errorf("of 7: %v", got)
	}
	if got := l.of(9); len(got) != 0 {
		t.Errorf("of 9: %v", got)
	}
	for i := range uint64(ledgerSlots - 2) {
		l.add(9, i)
	}
	l = open()
	if got := l.of(7); !slices.Equal(got, []uint64{3, 4}) {
		t.Errorf("after a round, of 7: %v", got)
	}
	got := l.of(9)
	if len(got) != ledgerSlots-2 || !slices.IsSorted(got) {
		t.Errorf("after a round, of 9: %d, %v …", len(got), got[:3])
	}
}

type fact struct {
	Name string
	Pids []unum.Pid
}

// A record is there whole or not at all; a torn one of a daemon that died is
// not seen, and a spoilt one is named.
func TestRecords(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "facts")
	r, err := openRecords[fact](dir)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]*fact{
		"1": {Name: "\xff any bytes \x00", Pids: []unum.Pid{65540, 2}},
		"2": {Name: ""},
	}
	for k, v := range want {
		if err := r.save(k, v); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.save("3", &fact{}); err != nil {
		t.Fatal(err)
	}
	r.remove("3")
	r.remove("3")
	if err := r.save("1", want["1"]); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".4"), []byte{0x81}, 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err = openRecords[fact](dir); err != nil {
		t.Fatal(err)
	}
	got, err := r.load()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if err := os.WriteFile(filepath.Join(dir, "5"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.load(); err == nil || !strings.Contains(err.Error(), filepath.Join(dir, "5")) {
		t.Errorf("a spoilt record: %v", err)
	}
}

// What `unum why` knows is bounded.
func TestWhys(t *testing.T) {
	w := &whys{}
	for pid := unum.Pid(1); pid <= 10_000; pid++ {
		w.set(pid, fmt.Sprint("because ", pid))
		w.set(pid, fmt.Sprint("again ", pid))
		w.add("stayed", int(pid))
	}
	if w.get(10_000, 0) != "again 10000" || w.get(5, 0) != "" {
		t.Errorf("%q, %q", w.get(10_000, 0), w.get(5, 0))
	}
	if w.get(unum.Pid(20_000), 10_000) != "stayed" {
		t.Error("what stayed last is forgotten")
	}
	if len(w.text) > len(w.ring) || len(w.stayed) > len(w.ring) {
		t.Errorf("%d and %d kept", len(w.text), len(w.stayed))
	}
}
