package pipe

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// page is a half's memory that outlives the daemon: a few words in a shared
// mapping of a file, and a record behind them. A store is there for a successor
// the moment it is made, however the daemon dies.
//
// Closed, it reads as zero and forgets what is stored: whoever comes so late
// has nothing more to say.
type page struct {
	path string

	mu  sync.RWMutex
	mem []byte // nil when closed
}

// The words of a page.
const (
	wCount  = iota // count<<phaseBits | phase, see source and sink
	wDirect        // length of the direct write in progress, phase direct
	wFlags         // f… bits
	words
)

// phases of wCount. What each means for a successor is said at source.resume
// and sink.resume.
const (
	idle = iota
	moving
	direct
	taking
	phaseBits = 2
)

// bits of wFlags.
const (
	fEnded     = 1 << iota // guest sink: the end of file was passed to the body
	fAdrift                // home: the placement is over, children of the body are served
	fContested             // read: the source is the held pipe, not the user's
	fReleased              // this side is done
)

const (
	pageSize  = 4096
	recordOff = 64
)

// newPage makes a page with a record that a successor can read.
func newPage(path string, record []byte) (*page, error) {
	if len(record) > pageSize-recordOff-4 {
		return nil, fmt.Errorf("pipe: record of %d bytes is too long", len(record))
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(pageSize); err != nil {
		return nil, err
	}
	p, err := mapPage(path, f)
	if err != nil {
		return nil, err
	}
	copy(p.mem[recordOff+4:], record)
	binary.LittleEndian.PutUint32(p.mem[recordOff:], uint32(len(record)))
	return p, nil
}

// openPage maps what a predecessor left. record is its.
func openPage(path string) (p *page, record []byte, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Size() != pageSize {
		return nil, nil, fmt.Errorf("pipe: %s is no page: %v", path, err)
	}
	if p, err = mapPage(path, f); err != nil {
		return nil, nil, err
	}
	n := binary.LittleEndian.Uint32(p.mem[recordOff:])
	if n > pageSize-recordOff-4 {
		p.close()
		return nil, nil, fmt.Errorf("pipe: %s is damaged", path)
	}
	return p, append([]byte(nil), p.mem[recordOff+4:][:n]...), nil
}

func mapPage(path string, f *os.File) (*page, error) {
	mem, err := unix.Mmap(int(f.Fd()), 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return &page{path: path, mem: mem}, nil
}

// word calls fn with word i, under mu.
func (p *page) word(i int, fn func(w *uint64)) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.mem != nil {
		fn((*uint64)(unsafe.Pointer(&p.mem[8*i])))
	}
}

func (p *page) load(i int) (v uint64) {
	p.word(i, func(w *uint64) { v = atomic.LoadUint64(w) })
	return v
}

func (p *page) store(i int, v uint64) { p.word(i, func(w *uint64) { atomic.StoreUint64(w, v) }) }
func (p *page) set(bit uint64)        { p.word(wFlags, func(w *uint64) { atomic.OrUint64(w, bit) }) }
func (p *page) clear(bit uint64)      { p.word(wFlags, func(w *uint64) { atomic.AndUint64(w, ^bit) }) }
func (p *page) has(bit uint64) bool   { return p.load(wFlags)&bit != 0 }

// count returns the count and its phase.
func (p *page) count() (n uint64, phase int) {
	v := p.load(wCount)
	return v >> phaseBits, int(v & (1<<phaseBits - 1))
}

func (p *page) setCount(n uint64, phase int) { p.store(wCount, n<<phaseBits|uint64(phase)) }

// close unmaps the page and leaves it to a successor.
func (p *page) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mem != nil {
		unix.Munmap(p.mem)
		p.mem = nil
	}
}

// remove forgets it.
func (p *page) remove() {
	p.close()
	os.Remove(p.path)
}
