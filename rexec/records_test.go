package rexec

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestTornRecords(t *testing.T) {
	type fact struct{ A, B string }
	dir := filepath.Join(t.TempDir(), "facts")
	r, err := openRecords[fact](dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []fact{{"1", "first"}, {"1", "again"}, {"2", "two"}} {
		if err := r.save(f.A, &f); err != nil {
			t.Fatal(err)
		}
	}
	r.remove("2")
	r.remove("never")
	// What a daemon left that died while it wrote.
	whole, err := os.ReadFile(filepath.Join(dir, "1"))
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		name := filepath.Join(dir, "3")
		if n%2 == 0 {
			name = filepath.Join(dir, ".1")
		}
		if err := os.WriteFile(name, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := r.load()
		if want := map[string]*fact{"1": {"1", "again"}}; err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("with %d bytes of another: %v, %v", n, got, err)
		}
	}
	last := fact{"1", "after a torn replacement"}
	if err := r.save("1", &last); err != nil {
		t.Fatal(err)
	}
	if err := r.save("3", &last); err != nil {
		t.Fatal(err)
	}
	if got, err := r.load(); err != nil || len(got) != 2 || *got["1"] != last || *got["3"] != last {
		t.Errorf("%v, %v", got, err)
	}
}
