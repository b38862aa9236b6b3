package fsnode

import (
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// table is the file server's memory of open files, in a memfd that is mapped
// shared: what is stored is there for a successor, whenever this process is
// killed. Callers serialise allocation; a record's fields belong to whom they
// were given.
type table struct {
	mem  []byte
	head *tableHead
	recs []record
}

const (
	tableMagic   = 0x756e756d66733032 // "unumfs02"
	tableRecords = 8192
)

type tableHead struct {
	Magic uint64
	Last  uint64 // the last number given to a node or a file handle
	Init  initOffer
	_     [11]uint64
	// Unanswered are the requests that were read and not answered, for kernels
	// that do not send them again.
	Unanswered [2048]unanswered
}

// initOffer is what the kernel said in its first request.
type initOffer struct {
	Flags        uint64
	Major, Minor uint32
	MaxReadAhead uint32
	_            uint32
}

type unanswered struct{ Unique, Node uint64 }

// A record is free (Kind 0), a node, or an open file of a node.
type record struct {
	Kind      uint32 // stored last
	Flags     uint32
	ID        uint64 // node id or file handle
	Node      uint64 // of an open file: its node
	Placement uint64
	Num       int32
	Mode      uint32
	Ino       uint64
	Size      int64
	P         int64 // see package carry/file
	HomeLen   uint32
	_         uint32
	Home      [48]byte
}

const (
	recFree = iota
	recNode
	recHandle
)

const (
	flagStream  = 1 << iota // of a node
	flagPrimary             // of an open file: the carried description itself
	flagOpened              // of a node: the primary was opened
)

// openTable maps the table in f, which the caller keeps. One that is empty is
// of a mount that nobody has served.
func openTable(f *os.File) (*table, error) {
	size := tableSize()
	if err := f.Truncate(int64(size)); err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	t := &table{mem: mem}
	t.head, t.recs = tableViews(mem)
	if t.head.Magic != tableMagic {
		t.head.Last = 1 // the root's node id
		t.head.Magic = tableMagic
	}
	return t, nil
}

func (t *table) close() { unix.Munmap(t.mem) }

// read notes that a request was read. Only the device loop calls it.
func (t *table) read(unique, node uint64) {
	for i := range t.head.Unanswered {
		if u := &t.head.Unanswered[i]; atomic.LoadUint64(&u.Unique) == 0 {
			u.Node = node
			atomic.StoreUint64(&u.Unique, unique)
			return
		}
	}
}

// answered notes that it was answered.
func (t *table) answered(unique uint64) {
	for i := range t.head.Unanswered {
		if atomic.CompareAndSwapUint64(&t.head.Unanswered[i].Unique, unique, 0) {
			return
		}
	}
}

// unanswered takes what a predecessor has left.
func (t *table) unanswered() (all []unanswered) {
	for i := range t.head.Unanswered {
		if u := t.head.Unanswered[i]; u.Unique != 0 {
			all = append(all, u)
			t.head.Unanswered[i] = unanswered{}
		}
	}
	return all
}

// alloc returns a free record with a fresh ID; the caller fills it and sets
// Kind. nil: the table is full.
func (t *table) alloc() *record {
	for i := range t.recs {
		if r := &t.recs[i]; r.Kind == recFree {
			t.head.Last++
			*r = record{ID: t.head.Last}
			return r
		}
	}
	return nil
}
