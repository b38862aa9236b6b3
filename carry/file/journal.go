package file

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// journal is what a daemon's successor must know of one served description:
// which numbered ops were executed, and what they answered. It is a file of
// the state directory, mapped shared, so that a store is there for the
// successor whenever this process is killed.
//
// An op goes through a slot:
//
//	free → taken → begun (executed or not) → done (its answer is known) → free (acked)
//
// What was read is not stored for a file, where it can be read again, but is
// for a pipe, in a part of the file that belongs to the slot.
type journal struct {
	path string
	file *os.File
	mem  []byte
	head *journalHead

	// step is called between two steps of an op; tests make it the place
	// where a daemon dies.
	step func(string)

	mu    sync.Mutex // of who owns which slot
	slots []journalSlot
}

const (
	journalMagic = 0x756e756d66696c31 // "unumfil1"
	journalSlots = 56
	streamSlots  = 16       // of them used for a pipe
	slotData     = 64 << 10 // bytes of a pipe that one op can take
	journalSize  = 8192
)

type journalHead struct {
	Magic    uint64
	Survivor uint32 // the body has ended, its children use the description
	Stream   uint32
	GuestLen uint32
	Scratch  uint32 // the scratch pipe is kept
	Guest    [64]byte
	Kept     [64]keptID
}

// keptID is a description beside the carried one that the Keeper holds.
type keptID struct {
	Kind uint64 // 0 none, keptReopen, keptLocks
	ID   uint64 // Fh, or lock owner
}

const (
	keptReopen = 1
	keptLocks  = 2
)

type journalSlot struct {
	Unique uint64
	Phase  uint32 // stored last
	Errno  uint32
	Before int64 // position before
	N      int64
	_      [4]uint64
}

const (
	slotFree  = iota
	slotTaken // nothing was done yet
	slotBegun
	slotMoved // a pipe: N bytes are in the scratch pipe or already in the file
	slotDone
)

func journalDir(stateDir string) string { return filepath.Join(stateDir, "file") }

func journalPath(stateDir string, key Key) string {
	return filepath.Join(journalDir(stateDir), key.String()+".ops")
}

// openJournal opens the journal of key, or makes an empty one.
func openJournal(stateDir string, key Key) (*journal, error) {
	path := journalPath(stateDir, key)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if os.IsNotExist(err) {
		if err := os.MkdirAll(journalDir(stateDir), 0o700); err != nil {
			return nil, err
		}
		f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	}
	if err != nil {
		return nil, err
	}
	// Allocated, not only sized: a full tmpfs must not show as SIGBUS.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, journalSize); err != nil {
		f.Close()
		return nil, fmt.Errorf("allocate %s: %w", path, err)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, journalSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	j := &journal{path: path, file: f, mem: mem, step: func(string) {}}
	j.head, j.slots = journalViews(mem)
	if j.head.Magic != journalMagic {
		clear(mem)
		j.head.Magic = journalMagic
	}
	return j, nil
}

// close leaves the file to a successor, or removes it.
func (j *journal) close(remove bool) {
	if remove {
		os.Remove(j.path)
	}
	unix.Munmap(j.mem)
	j.file.Close()
}

// begin takes a slot; nil if all are used, which costs only the protection
// against a crash.
func (j *journal) begin(unique uint64, stream bool) *journalSlot {
	j.mu.Lock()
	defer j.mu.Unlock()
	slots := j.slots
	if stream {
		slots = slots[:streamSlots]
	}
	for i := range slots {
		if s := &slots[i]; s.Phase == slotFree {
			*s = journalSlot{Unique: unique, Phase: slotTaken}
			return s
		}
	}
	return nil
}

func (s *journalSlot) begun(before int64) {
	if s != nil {
		s.Before = before
		s.Phase = slotBegun
	}
}

func (s *journalSlot) done(r *Result) {
	if s != nil {
		s.Errno, s.N = uint32(r.Errno), r.N
		s.Phase = slotDone
	}
}

func (j *journal) slot(unique uint64) *journalSlot {
	for i := range j.slots {
		if s := &j.slots[i]; s.Phase != slotFree && s.Unique == unique {
			return s
		}
	}
	return nil
}

func (j *journal) forget(unique uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if s := j.slot(unique); s != nil {
		s.Phase = slotFree
	}
}

// data is where the bytes of a pipe's slot lie in the file.
func (j *journal) data(s *journalSlot) int64 {
	for i := range j.slots {
		if s == &j.slots[i] {
			return journalSize + int64(i)*slotData
		}
	}
	panic("journal: slot of another journal")
}

func (j *journal) setGuest(name string) { j.head.GuestLen = uint32(copy(j.head.Guest[:], name)) }

func (j *journal) guest() string { return string(j.head.Guest[:min(j.head.GuestLen, 64)]) }

// keep notes that the Keeper holds a description; false if there is no room.
func (j *journal) keep(kind, id uint64) bool {
	for i := range j.head.Kept {
		if k := &j.head.Kept[i]; k.Kind == 0 {
			k.ID = id
			k.Kind = kind
			return true
		}
	}
	return false
}

func (j *journal) drop(kind, id uint64) {
	for i := range j.head.Kept {
		if k := &j.head.Kept[i]; k.Kind == kind && k.ID == id {
			k.Kind = 0
		}
	}
}

// journals lists the keys that a predecessor left journals of.
func journals(stateDir string) []Key {
	names, err := os.ReadDir(journalDir(stateDir))
	if err != nil {
		return nil
	}
	var keys []Key
	for _, n := range names {
		base, ok := strings.CutSuffix(n.Name(), ".ops")
		if !ok {
			continue
		}
		if k, err := ParseKey(base); err == nil {
			keys = append(keys, k)
		}
	}
	return keys
}
