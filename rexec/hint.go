package rexec

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"unum/sys"
)

// Every exec is asked for its UNUM_NODE, also the many that stay here: what is
// done for it is most of what an exec in a world costs more than another.
// Looking into another process is what costs, so of each page in which strings
// lie their span is read at once; and together with the pointers those spans in
// which the strings lay the last time.
const (
	hintBatch   = 256 // pointers at a time
	hintPages   = 64  // of strings for a batch; if there are more, each string is read
	hintAhead   = 64  // of a string, where its page has it: the value too, mostly
	hintGuesses = 8
	pageSize    = 4096
)

// hintReader is the memory for one look.
type hintReader struct {
	pid    int
	ptrs   [8 * hintBatch]byte
	need   spans                      // where the strings lie
	have   spans                      // what is in mem
	mem    [hintPages * pageSize]byte // span i's page is the i-th
	local  [1 + hintPages]unix.Iovec
	remote [1 + hintPages]unix.RemoteIovec

	guesses [hintGuesses]hintGuess
	oldest  int
}

// hintGuess says where the strings of the pointers at env were.
type hintGuess struct {
	env uint64
	at  spans
}

// span is the part of a page from lo to before hi.
type span struct {
	page   uint64
	lo, hi int
}

// spans has at most one span of a page, ascending.
type spans struct {
	n int
	a [hintPages]span
}

func (s *spans) all() []span { return s.a[:s.n] }

// find returns where a page's span is, or would be.
func (s *spans) find(page uint64) (i int, ok bool) {
	return slices.BinarySearchFunc(s.all(), page, func(x span, page uint64) int { return cmp.Compare(x.page, page) })
}

// add adds a part of a page, and says whether there was room for it.
func (s *spans) add(page uint64, lo, hi int) bool {
	i, have := s.find(page)
	switch {
	case have:
		s.a[i].lo, s.a[i].hi = min(s.a[i].lo, lo), max(s.a[i].hi, hi)
		return true
	case s.n == len(s.a):
		return false
	}
	copy(s.a[i+1:s.n+1], s.a[i:s.n])
	s.a[i] = span{page, lo, hi}
	s.n++
	return true
}

// size is how many bytes they are.
func (s *spans) size() (n int) {
	for _, x := range s.all() {
		n += x.hi - x.lo
	}
	return n
}

// covers says whether all of o is in s.
func (s *spans) covers(o *spans) bool {
	i := 0
	for _, x := range o.all() {
		for i < s.n && s.a[i].page < x.page {
			i++
		}
		if i == s.n || s.a[i].page != x.page || s.a[i].lo > x.lo || s.a[i].hi < x.hi {
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
		r.have = g.at
	}
	got, err := r.read(env, len(r.ptrs))
	if got < len(r.ptrs)+r.have.size() {
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
			head = r.from(at)
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

// strings sees to it that the heads of the strings are read, and says whether
// they all are.
func (r *hintReader) strings(env uint64, ptrs []byte) bool {
	r.need.n = 0
	for ; len(ptrs) > 0; ptrs = ptrs[8:] {
		at := binary.LittleEndian.Uint64(ptrs)
		page, lo := at&^(pageSize-1), int(at%pageSize)
		if !r.need.add(page, lo, min(lo+hintAhead, pageSize)) {
			return false
		}
		if over := lo + len(hintKey) - pageSize; over > 0 && !r.need.add(page+pageSize, 0, over) {
			return false
		}
	}
	if r.have.covers(&r.need) {
		return true
	}
	r.have = r.need
	n, err := r.read(0, 0)
	if err != nil || n != r.have.size() {
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

// read reads size bytes of pointers at env and then what have says, and returns
// how much it could read.
func (r *hintReader) read(env uint64, size int) (int, error) {
	local, remote := r.local[:0], r.remote[:0]
	if size > 0 {
		local = append(local, unix.Iovec{Base: &r.ptrs[0], Len: uint64(size)})
		remote = append(remote, unix.RemoteIovec{Base: uintptr(env), Len: size})
	}
	for i, x := range r.have.all() {
		local = append(local, unix.Iovec{Base: &r.mem[i*pageSize+x.lo], Len: uint64(x.hi - x.lo)})
		remote = append(remote, unix.RemoteIovec{Base: uintptr(x.page) + uintptr(x.lo), Len: x.hi - x.lo})
	}
	return unix.ProcessVMReadv(r.pid, local, remote, 0)
}

// from returns what was read from at on, which is in have.
func (r *hintReader) from(at uint64) []byte {
	i, _ := r.have.find(at &^ (pageSize - 1))
	begin, end := i*pageSize+int(at%pageSize), i*pageSize+r.have.a[i].hi
	if next := i + 1; r.have.a[i].hi == pageSize && next < r.have.n &&
		r.have.a[next].page == r.have.a[i].page+pageSize && r.have.a[next].lo == 0 {
		end = next*pageSize + r.have.a[next].hi
	}
	return r.mem[begin:end]
}
