package rexec

import (
	"bytes"
	"encoding/binary"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"unum/sys"
)

// Every exec is asked for its UNUM_NODE, also the many that stay here: what is
// done for it is most of what an exec in a world costs more than another. The
// strings of an environment lie in a few pages, and pages are what reading
// another process's memory costs, so whole pages are read.
const (
	hintBatch = 256 // pointers at a time
	hintPages = 12  // of strings for a batch; if there are more, each string is read
	pageSize  = 4096
)

// hintReader is the memory for one look.
type hintReader struct {
	pid   int
	ptrs  [8 * hintBatch]byte
	pages [hintPages]uint64 // addresses, ascending
	n     int               // how many
	local [1]unix.Iovec
	runs  [hintPages]unix.RemoteIovec
	mem   [hintPages * pageSize]byte // of the pages, one after the other
}

var hintReaders = sync.Pool{New: func() any { return new(hintReader) }}

// readHint returns the value of UNUM_NODE in the environment at env, "" if it
// is not there or cannot be read.
func readHint(pid int, env uint64) string {
	r := hintReaders.Get().(*hintReader)
	defer hintReaders.Put(r)
	for r.pid = pid; ; env += uint64(len(r.ptrs)) {
		n, end := r.pointers(env)
		if at, value, ok := r.find(r.ptrs[:n]); ok {
			if i := bytes.IndexByte(value, 0); i >= 0 {
				return string(value[:i])
			}
			v, err := sys.ReadString(pid, at+uint64(len(hintKey)), 4096)
			if err != nil {
				return ""
			}
			return v
		}
		if end {
			return ""
		}
	}
}

// pointers reads a batch of envp, and returns how many bytes come before its end.
func (r *hintReader) pointers(env uint64) (n int, end bool) {
	if env == 0 {
		return 0, true
	}
	got, err := sys.ReadMem(r.pid, env, r.ptrs[:])
	if err != nil {
		// It may end near the end of its mapping.
		got = min(len(r.ptrs), int(pageSize-env%pageSize))
		if got, err = sys.ReadMem(r.pid, env, r.ptrs[:got]); err != nil {
			return 0, true
		}
	}
	for ; n+8 <= got; n += 8 {
		if binary.LittleEndian.Uint64(r.ptrs[n:]) == 0 {
			return n, true
		}
	}
	return n, n < len(r.ptrs)
}

// find returns the address of the string that begins with the key, and what has
// been read of its value.
func (r *hintReader) find(ptrs []byte) (at uint64, value []byte, ok bool) {
	whole := r.read(ptrs)
	var one [len(hintKey)]byte
	for ; len(ptrs) > 0; ptrs = ptrs[8:] {
		at := binary.LittleEndian.Uint64(ptrs)
		head := one[:]
		if whole {
			i, _ := slices.BinarySearch(r.pages[:r.n], at&^(pageSize-1))
			head = r.mem[i*pageSize+int(at%pageSize) : r.whole(i)]
		} else {
			n, _ := sys.ReadMem(r.pid, at, head)
			head = head[:max(n, 0)]
		}
		if value, ok := bytes.CutPrefix(head, []byte(hintKey)); ok {
			return at, value, true
		}
	}
	return 0, nil, false
}

// read reads the pages in which the strings' heads lie, and says whether it has
// them all.
func (r *hintReader) read(ptrs []byte) bool {
	r.n = 0
	for ; len(ptrs) > 0; ptrs = ptrs[8:] {
		at := binary.LittleEndian.Uint64(ptrs)
		if !r.add(at&^(pageSize-1)) || !r.add((at+uint64(len(hintKey))-1)&^(pageSize-1)) {
			return false
		}
	}
	if r.n == 0 {
		return true
	}
	runs := r.runs[:0]
	for i, at := range r.pages[:r.n] {
		if i > 0 && at == r.pages[i-1]+pageSize {
			runs[len(runs)-1].Len += pageSize
		} else {
			runs = append(runs, unix.RemoteIovec{Base: uintptr(at), Len: pageSize})
		}
	}
	r.local[0] = unix.Iovec{Base: &r.mem[0], Len: uint64(r.n * pageSize)}
	n, err := unix.ProcessVMReadv(r.pid, r.local[:], runs, 0)
	return err == nil && n == r.n*pageSize
}

// whole returns where the pages end that follow page i without a gap.
func (r *hintReader) whole(i int) int {
	for i++; i < r.n && r.pages[i] == r.pages[i-1]+pageSize; i++ {
	}
	return i * pageSize
}

// add adds a page, and says whether there was room for it.
func (r *hintReader) add(page uint64) bool {
	i, have := slices.BinarySearch(r.pages[:r.n], page)
	switch {
	case have:
		return true
	case r.n == len(r.pages):
		return false
	}
	copy(r.pages[i+1:r.n+1], r.pages[i:r.n])
	r.pages[i] = page
	r.n++
	return true
}
