package rexec

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ledger remembers, across deaths of the daemon, which signals were delivered
// last: home tells one again when it did not hear that it was. It is a ring in
// a page that is shared with a file, so that a note is two stores and happens
// right after the delivery. It is never unmapped.
type ledger struct {
	page []byte
	at   int
}

// An entry is the operation id of the body and the id of the signal, or the id
// of a group's signal and groupNote.
const (
	ledgerSlots = 1024
	ledgerSlot  = 16
)

func openLedger(path string) (*ledger, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(8 + ledgerSlots*ledgerSlot); err != nil {
		return nil, err
	}
	page, err := unix.Mmap(int(f.Fd()), 0, 8+ledgerSlots*ledgerSlot, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	return &ledger{page, int(binary.LittleEndian.Uint64(page) % ledgerSlots)}, nil
}

func (l *ledger) slot(i int) []byte { return l.page[8+i*ledgerSlot:][:ledgerSlot] }

// add notes a delivery. Preconditions: Guests.mu is held.
func (l *ledger) add(op, id uint64) {
	s := l.slot(l.at)
	binary.LittleEndian.PutUint64(s, 0)
	binary.LittleEndian.PutUint64(s[8:], id)
	binary.LittleEndian.PutUint64(s, op)
	l.at = (l.at + 1) % ledgerSlots
	binary.LittleEndian.PutUint64(l.page, uint64(l.at))
}

// of lists the signals that an operation's body was given, oldest first.
func (l *ledger) of(op uint64) []uint64 {
	var ids []uint64
	for i := range ledgerSlots {
		s := l.slot((l.at + i) % ledgerSlots)
		if binary.LittleEndian.Uint64(s) == op {
			ids = append(ids, binary.LittleEndian.Uint64(s[8:]))
		}
	}
	return ids
}

// groups lists the signals to groups that were delivered here, oldest first.
func (l *ledger) groups() []uint64 {
	var ids []uint64
	for i := range ledgerSlots {
		s := l.slot((l.at + i) % ledgerSlots)
		if binary.LittleEndian.Uint64(s[8:]) == groupNote {
			ids = append(ids, binary.LittleEndian.Uint64(s))
		}
	}
	return ids
}
