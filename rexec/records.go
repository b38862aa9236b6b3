package rexec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"
)

// records is a directory of small facts that must outlive the daemon, one file
// a fact. A fact appears whole or not at all, and is only ever replaced whole.
// It is guarded against the daemon's death, not the machine's: nothing is
// synced to a disk.
type records[T any] struct{ dir string }

func openRecords[T any](dir string) (records[T], error) {
	return records[T]{dir}, os.MkdirAll(dir, 0o700)
}

func (r records[T]) file(key string) string { return filepath.Join(r.dir, key) }

// save writes a fact down. A new one is written in place, and counts from when
// all of it is there: its length comes first. One that exists is replaced by a
// rename.
func (r records[T]) save(key string, v *T) error {
	b, err := msgpack.Marshal(v)
	if err != nil {
		return err
	}
	head := append(make([]byte, 0, recordHead+len(b)), recordMagic...)
	b = append(binary.LittleEndian.AppendUint32(head, uint32(len(b))), b...)
	err = put(r.file(key), b)
	if errors.Is(err, unix.EEXIST) {
		tmp := r.file("." + key)
		unix.Unlink(tmp)
		if err = put(tmp, b); err == nil {
			return os.Rename(tmp, r.file(key))
		}
	}
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	return nil
}

// A record's head: what it is, and its length.
const (
	recordMagic = "unum"
	recordHead  = len(recordMagic) + 4
)

// openRecord returns what a record holds; torn says that it was not written to its
// end.
func openRecord(b []byte) (body []byte, torn bool, err error) {
	if n := min(len(b), len(recordMagic)); string(b[:n]) != recordMagic[:n] {
		return nil, false, errors.New("no record")
	}
	if len(b) < recordHead {
		return nil, true, nil
	}
	body = b[recordHead:]
	size := int(binary.LittleEndian.Uint32(b[len(recordMagic):]))
	if len(body) > size {
		return nil, false, errors.New("longer than it says")
	}
	return body, len(body) < size, nil
}

// put makes a file. It is os.WriteFile without what that does for files that
// can be waited for.
func put(path string, b []byte) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "create", Path: path, Err: err}
	}
	defer unix.Close(fd)
	for rest := b; len(rest) > 0; {
		n, err := unix.Write(fd, rest)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			unix.Unlink(path)
			return &os.PathError{Op: "write", Path: path, Err: err}
		}
		rest = rest[n:]
	}
	return nil
}

func (r records[T]) remove(key string) { unix.Unlink(r.file(key)) }

// load returns all facts by key, and removes what was not written to its end.
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
		body, torn, err := openRecord(b)
		if torn {
			r.remove(e.Name())
			continue
		}
		v := new(T)
		if err == nil {
			err = msgpack.Unmarshal(body, v)
		}
		if err != nil {
			return nil, fmt.Errorf("record %s: %w", r.file(e.Name()), err)
		}
		out[e.Name()] = v
	}
	return out, nil
}
