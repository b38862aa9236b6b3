package rexec

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/vmihailenco/msgpack/v5"
)

// records is a directory of small facts that must outlive the daemon, one file
// a fact. A file appears whole or not at all, and is only ever replaced whole.
// It is guarded against the daemon's death, not the machine's: nothing is
// synced to a disk.
type records[T any] struct{ dir string }

func openRecords[T any](dir string) (records[T], error) {
	return records[T]{dir}, os.MkdirAll(dir, 0o700)
}

func (r records[T]) file(key string) string { return filepath.Join(r.dir, key) }

func (r records[T]) save(key string, v *T) error {
	b, err := msgpack.Marshal(v)
	if err != nil {
		return err
	}
	tmp := r.file("." + key)
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	return os.Rename(tmp, r.file(key))
}

func (r records[T]) remove(key string) { os.Remove(r.file(key)) }

// load returns all facts by key.
func (r records[T]) load() (map[string]*T, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, err
	}
	out := map[string]*T{}
	for _, e := range entries {
		if e.Name()[0] == '.' {
			continue
		}
		b, err := os.ReadFile(r.file(e.Name()))
		if err != nil {
			return nil, err
		}
		v := new(T)
		if err := msgpack.Unmarshal(b, v); err != nil {
			return nil, fmt.Errorf("record %s: %w", r.file(e.Name()), err)
		}
		out[e.Name()] = v
	}
	return out, nil
}
