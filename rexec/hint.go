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
// strings of an environment lie in a few pages, and looking into another
// process is what costs, so whole pages are read; and together with the
// pointers those pages in which the strings lay the last time.
const (
	hintBatch   = 256 // pointers at a time
	hintPages   = 12  // of strings for a batch; if there are more, each string is read
	hintGuesses = 8
	pageSize    = 4096
)

// hintReader is the memory for one look.
type hintReader struct {
	pid    int
	ptrs   [8 * hintBatch]byte
	need   pageSet // the strings' pages
	have   pageSet // what is in mem, one after the other
	mem    [hintPages * pageSize]byte
	local  [2]unix.Iovec
	remote [1 + hintPages]unix.RemoteIovec

	guesses [hintGuesses]hintGuess
	oldest  int
}

// hintGuess says in which pages the strings of the pointers at env were.
type hintGuess struct {
	env   uint64
	pages pageSet
}

// pageSet is a set of addresses of pages, ascending.
type pageSet struct {
	n int
	a [hintPages]uint64
}

func (s *pageSet) all() []uint64 { return s.a[:s.n] }

// add adds a page, and says whether there was room for it.
func (s *pageSet) add(page uint64) bool {
	i, have := slices.BinarySearch(s.all(), page)
	switch {
	case have:
		return true
	case s.n == len(s.a):
		return false
	}
	copy(s.a[i+1:s.n+1], s.a[i:s.n])
	s.a[i] = page
	s.n++
	return true
}

// covers says whether o's pages are all in s.
func (s *pageSet) covers(o *pageSet) bool {
	i := 0
	for _, page := range o.all() {
		for i < s.n && s.a[i] < page {
			i++
		}
		if i == s.n || s.a[i] != page {
			return false
		}
	}
	return true
}

var hintReaders = sync.Pool{New: func() any { return new(hintReader) }}

// readHint returns the value of UNUM_NODE in the environment at env, "" if it
// is not there or cannot be read.
func readHint(pid int, env uint64) string {
	r := hintReaders.Get().(*hintReader)
	defer hintReaders.Put(r)
	for r.pid = pid; ; env += uint64(len(r.ptrs)) {
		n, end := r.pointers(env)
		if at, value, ok := r.find(env, r.ptrs[:n]); ok {
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
	r.have.n = 0
	if env == 0 {
		return 0, true
	}
	if g := r.guess(env); g != nil {
		r.have = g.pages
	}
	got, err := r.read(env, len(r.ptrs))
	if got < len(r.ptrs)+r.have.n*pageSize {
		r.have.n = 0 // not as it was
		got = min(got, len(r.ptrs))
	}
	if err != nil {
		// It may end near the end of its mapping.
		got, err = r.read(env, min(len(r.ptrs), int(pageSize-env%pageSize)))
		if err != nil {
			return 0, true
		}
	}
	got = min(got, len(r.ptrs))
	for ; n+8 <= got; n += 8 {
		if binary.LittleEndian.Uint64(r.ptrs[n:]) == 0 {
			return n, true
		}
	}
	return n, n < len(r.ptrs)
}

// find returns the address of the string that begins with the key, and what has
// been read of its value. ptrs are what was read at env.
func (r *hintReader) find(env uint64, ptrs []byte) (at uint64, value []byte, ok bool) {
	whole := r.strings(env, ptrs)
	var one [len(hintKey)]byte
	for ; len(ptrs) > 0; ptrs = ptrs[8:] {
		at := binary.LittleEndian.Uint64(ptrs)
		head := one[:]
		if whole {
			i, _ := slices.BinarySearch(r.have.all(), at&^(pageSize-1))
			head = r.mem[i*pageSize+int(at%pageSize) : r.gapless(i)]
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

// strings sees to it that the pages are read in which the strings' heads lie, and
// says whether they all are.
func (r *hintReader) strings(env uint64, ptrs []byte) bool {
	r.need.n = 0
	for ; len(ptrs) > 0; ptrs = ptrs[8:] {
		at := binary.LittleEndian.Uint64(ptrs)
		if !r.need.add(at&^(pageSize-1)) || !r.need.add((at+uint64(len(hintKey))-1)&^(pageSize-1)) {
			return false
		}
	}
	if r.have.covers(&r.need) {
		return true
	}
	r.have = r.need
	n, err := r.read(0, 0)
	if err != nil || n != r.have.n*pageSize {
		return false
	}
	g := r.guess(env)
	if g == nil {
		g = &r.guesses[r.oldest]
		r.oldest = (r.oldest + 1) % hintGuesses
	}
	*g = hintGuess{env, r.have}
	return true
}

func (r *hintReader) guess(env uint64) *hintGuess {
	for i := range r.guesses {
		if r.guesses[i].env == env {
			return &r.guesses[i]
		}
	}
	return nil
}

// read reads size bytes of pointers at env and then the pages of have, and
// returns how much it could read.
func (r *hintReader) read(env uint64, size int) (int, error) {
	local, remote := r.local[:0], r.remote[:0]
	if size > 0 {
		local = append(local, unix.Iovec{Base: &r.ptrs[0], Len: uint64(size)})
		remote = append(remote, unix.RemoteIovec{Base: uintptr(env), Len: size})
	}
	for i, at := range r.have.all() {
		if i > 0 && at == r.have.a[i-1]+pageSize {
			remote[len(remote)-1].Len += pageSize
		} else {
			remote = append(remote, unix.RemoteIovec{Base: uintptr(at), Len: pageSize})
		}
	}
	if r.have.n > 0 {
		local = append(local, unix.Iovec{Base: &r.mem[0], Len: uint64(r.have.n * pageSize)})
	}
	return unix.ProcessVMReadv(r.pid, local, remote, 0)
}

// gapless returns where the pages end that follow page i without a gap.
func (r *hintReader) gapless(i int) int {
	for i++; i < r.have.n && r.have.a[i] == r.have.a[i-1]+pageSize; i++ {
	}
	return i * pageSize
}
