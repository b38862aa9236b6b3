package tty

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// page is what a half must still know after its daemon was killed: some words
// and a ring of bytes in a mapped file of Env.StateDir. Stores survive the
// process that made them. With no StateDir it is plain memory.
//
// Lock: that of the half.
type page struct {
	path string
	b    []byte
	ring []byte
}

// Words of a page.
const (
	wordMagic   = iota
	wordLife    // of the home half
	wordGot     // guest: last message of home's that was done
	wordSent    // guest: output, as a position in its stream
	wordWritten // both: how much of it home's terminal has
	wordFg      // guest
	wordNobody  // guest
	wordLine    // both: which pty at the guest
	wordModes   // guest: length of the modes, which follow the words
	wordDesc    // guest: length of the description, after them
	words

	pageHead  = 1024
	descAt    = 512
	ringSize  = 16 << 10 // at least two windows
	pageMagic = 0x3179747472726163
)

// openPage maps the page of that name; found says that a predecessor left it.
func openPage(dir, name string, ring int) (p *page, found bool, err error) {
	p = &page{}
	size := pageHead + ring
	if dir == "" {
		p.b = make([]byte, size)
	} else {
		p.path = filepath.Join(dir, url.PathEscape(name))
		fd, err := unix.Open(p.path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, false, &fs.PathError{Op: "open", Path: p.path, Err: err}
		}
		defer unix.Close(fd)
		if err := unix.Ftruncate(fd, int64(size)); err != nil {
			return nil, false, &fs.PathError{Op: "truncate", Path: p.path, Err: err}
		}
		if p.b, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
			return nil, false, &fs.PathError{Op: "map", Path: p.path, Err: err}
		}
	}
	p.ring = p.b[pageHead:]
	found = p.get(wordMagic) == pageMagic
	if !found {
		clear(p.b)
		p.set(wordMagic, pageMagic)
	}
	return p, found, nil
}

func (p *page) get(word int) uint64 {
	if p.b == nil {
		return 0
	}
	return binary.NativeEndian.Uint64(p.b[8*word:])
}

func (p *page) set(word int, v uint64) {
	if p.b != nil {
		binary.NativeEndian.PutUint64(p.b[8*word:], v)
	}
}

// put stores b at a position of the stream.
func (p *page) put(pos int64, b []byte) {
	if len(p.ring) == 0 {
		return
	}
	for len(b) > 0 {
		n := copy(p.ring[pos%int64(len(p.ring)):], b)
		b, pos = b[n:], pos+int64(n)
	}
}

// take returns a copy of the stream from one position to another.
func (p *page) take(from, to int64) []byte {
	if to <= from || to-from > int64(len(p.ring)) {
		return nil
	}
	out := make([]byte, 0, to-from)
	for from < to {
		at := from % int64(len(p.ring))
		end := min(int64(len(p.ring)), at+to-from)
		out = append(out, p.ring[at:end]...)
		from += end - at
	}
	return out
}

func (p *page) setModes(m *Modes) { p.setBlob(wordModes, 8*words, descAt, m) }

func (p *page) modes() (m Modes, err error) {
	return m, p.blob(wordModes, 8*words, descAt, &m)
}

func (p *page) setDesc(d *Desc) { p.setBlob(wordDesc, descAt, pageHead, d) }

func (p *page) desc() (d Desc, err error) {
	return d, p.blob(wordDesc, descAt, pageHead, &d)
}

func (p *page) setBlob(word, at, end int, v any) {
	b, err := marshal(v)
	if err != nil || p.b == nil || at+len(b) > end {
		return
	}
	p.set(word, 0)
	copy(p.b[at:], b)
	p.set(word, uint64(len(b)))
}

func (p *page) blob(word, at, end int, v any) error {
	n := int(p.get(word))
	if n <= 0 || at+n > end {
		return unix.ENODATA
	}
	return unmarshal(p.b[at:at+n], v)
}

// close unmaps; the file stays for a successor unless it is to be forgotten.
func (p *page) close(forget bool) error {
	var err error
	if p.path != "" && p.b != nil {
		err = unix.Munmap(p.b)
	}
	p.b, p.ring = nil, nil
	if forget && p.path != "" {
		err = errors.Join(err, os.Remove(p.path))
	}
	return err
}
