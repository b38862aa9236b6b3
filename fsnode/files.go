package fsnode

import (
	"sync"

	"golang.org/x/sys/unix"

	"unum/carry/file"
)

// node is a carried description as an inode of the mount.
//
//	registered → open ⇄ (more handles) → released
type node struct {
	rec  *record
	key  file.Key
	home string

	mu          sync.Mutex
	primary     *handle
	handles     int
	acked       []uint64       // answers that reached a program and that home does not know of
	watched     map[int32]bool // processes whose end drops record locks
	released    chan struct{}  // closed when home knows that it is closed
	wasReleased bool
}

// handle is one open file of the mount.
type handle struct {
	rec  *record
	node *node

	mu      sync.Mutex // of rec.P
	polling bool
}

// homeFh is the handle's number at home.
func (h *handle) homeFh() uint64 {
	if h.rec.Flags&flagPrimary != 0 {
		return 0
	}
	return h.rec.ID
}

func (n *node) stream() bool { return n.rec.Flags&flagStream != 0 }

// files is what the server knows of its mount.
type files struct {
	mu      sync.Mutex
	tab     *table
	nodes   map[uint64]*node
	byKey   map[file.Key]*node
	handles map[uint64]*handle
}

func newFiles(t *table) *files {
	return &files{tab: t, nodes: map[uint64]*node{}, byKey: map[file.Key]*node{}, handles: map[uint64]*handle{}}
}

// load rebuilds everything from the table of a predecessor.
func (f *files) load() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.tab.recs {
		if r := &f.tab.recs[i]; r.Kind == recNode {
			f.addNode(r)
		}
	}
	for i := range f.tab.recs {
		r := &f.tab.recs[i]
		if r.Kind != recHandle {
			continue
		}
		n := f.nodes[r.Node]
		if n == nil {
			r.Kind = recFree
			continue
		}
		f.addHandle(n, r)
	}
}

func (f *files) addNode(r *record) *node {
	n := &node{
		rec: r, key: file.Key{Placement: r.Placement, Num: r.Num}, home: string(r.Home[:r.HomeLen]),
		released: make(chan struct{}), watched: map[int32]bool{},
	}
	f.nodes[r.ID], f.byKey[n.key] = n, n
	return n
}

func (f *files) addHandle(n *node, r *record) *handle {
	h := &handle{rec: r, node: n}
	f.handles[r.ID] = h
	n.handles++
	if r.Flags&flagPrimary != 0 {
		n.primary = h
	}
	return h
}

// register makes the inode of a carried description. Doing it twice is no
// error.
func (f *files) register(r *file.Registration) (*node, unix.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.byKey[r.Key]; n != nil {
		return n, 0
	}
	var rec *record
	if len(r.Home) > len(rec.Home) {
		return nil, unix.ENAMETOOLONG
	}
	if rec = f.tab.alloc(); rec == nil {
		return nil, unix.ENFILE
	}
	rec.Placement, rec.Num, rec.Mode, rec.Ino, rec.Size, rec.P = r.Key.Placement, r.Key.Num, r.Mode, r.Ino, r.Size, r.Pos
	rec.HomeLen = uint32(copy(rec.Home[:], r.Home))
	if r.Stream {
		rec.Flags |= flagStream
	}
	rec.Kind = recNode
	return f.addNode(rec), 0
}

// openPrimary opens the carried description itself. ok is false if that was
// done before: then it is an open of /proc/PID/fd/N.
func (f *files) openPrimary(n *node) (h *handle, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n.rec.Flags&flagOpened != 0 {
		return nil, false
	}
	rec := f.tab.alloc()
	if rec == nil {
		return nil, true
	}
	rec.Node, rec.P, rec.Flags = n.rec.ID, n.rec.P, flagPrimary
	rec.Kind = recHandle
	n.rec.Flags |= flagOpened
	return f.addHandle(n, rec), true
}

// openAgain makes a handle for another open of n's file.
func (f *files) openAgain(n *node) *handle {
	f.mu.Lock()
	defer f.mu.Unlock()
	rec := f.tab.alloc()
	if rec == nil {
		return nil
	}
	rec.Node = n.rec.ID
	rec.Kind = recHandle
	return f.addHandle(n, rec)
}

// closeHandle forgets h and says whether it was the node's last.
func (f *files) closeHandle(h *handle) (last bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := h.node
	delete(f.handles, h.rec.ID)
	n.handles--
	if n.handles > 0 {
		h.rec.Kind = recFree
		return false
	}
	// The record of the last one stays until home knows, so that a successor
	// tells it.
	return true
}

// dropNode forgets n, which home has been told of.
func (f *files) dropNode(n *node, h *handle) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if h != nil {
		h.rec.Kind = recFree
	}
	if f.byKey[n.key] == n {
		delete(f.byKey, n.key)
		delete(f.nodes, n.rec.ID)
		n.rec.Kind = recFree
	}
	if !n.wasReleased {
		n.wasReleased = true
		close(n.released)
	}
}

// opened says whether n was ever opened, inUse whether it is now.
func (f *files) opened(n *node) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return n.rec.Flags&flagOpened != 0
}

func (f *files) inUse(n *node) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return n.handles > 0
}

func (f *files) node(id uint64) *node {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nodes[id]
}

func (f *files) keyed(k file.Key) *node {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.byKey[k]
}

func (f *files) handle(fh uint64) *handle {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.handles[fh]
}
