package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"

	"golang.org/x/sys/unix"

	"unum"
)

// keptName is the Keeper's name for something of a served description.
func keptName(key Key, kind, id uint64) string {
	return fmt.Sprintf("file.%s.%d.%x", key.String(), kind, id)
}

func carriedName(key Key) string { return "file." + key.String() }

// keep has a description kept that is at home only for the guest, so that it
// outlives this daemon. Without that it would be lost with it, which is said.
func (h *home) keep(s *served, kind, id uint64, f *os.File) {
	if !s.log.keep(kind, id) {
		h.log.Warn("too many descriptions of one file to keep", "file", s.key.String())
		return
	}
	if err := h.keeper.Keep(context.Background(), keptName(s.key, kind, id), f); err != nil {
		s.log.drop(kind, id)
		h.log.Warn("a description of a carried file would not outlive this daemon", "file", s.key.String(), "err", err)
	}
}

func (h *home) unkeep(s *served, kind, id uint64) {
	if err := h.keeper.Drop(context.Background(), keptName(s.key, kind, id)); err != nil {
		h.log.Warn("drop a kept file", "err", err)
	}
	s.log.drop(kind, id)
}

// survive has the description itself kept, as the deputy that held it ends. A
// release that comes meanwhile waits for it, as for an op, and drops what was
// kept: else the keeper would hold it, and a pipe never break.
func (h *home) survive(ctx context.Context, s *served) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	d := s.open[0]
	s.ops.Add(1)
	s.mu.Unlock()
	defer s.ops.Done()
	if err := h.keeper.Keep(ctx, carriedName(s.key), d.file); err != nil {
		return &unum.Error{Op: "keep", Path: s.key.String(), Err: err}
	}
	s.log.head.Survivor = 1
	return nil
}

// dropKept drops all that is kept of s.
func (h *home) dropKept(s *served) {
	var names []string
	for _, k := range s.log.head.Kept {
		if k.Kind != 0 {
			names = append(names, keptName(s.key, k.Kind, k.ID))
		}
	}
	if s.log.head.Survivor != 0 {
		names = append(names, carriedName(s.key))
	}
	if s.log.head.Scratch != 0 {
		names = append(names, (&spool{key: s.key}).name())
	}
	for _, n := range names {
		if err := h.keeper.Drop(context.Background(), n); err != nil {
			h.log.Warn("drop a kept file", "err", err)
		}
	}
}

// restore takes over what the predecessor's journal tells of s.
func (h *home) restore(s *served) error {
	if s.spool != nil {
		if err := s.spool.recover(); err != nil {
			return fmt.Errorf("take over a pipe: %w", err)
		}
	}
	for i := range s.log.slots {
		slot := &s.log.slots[i]
		switch slot.Phase {
		case slotFree:
		case slotTaken:
			slot.Phase = slotFree
		default:
			s.before[slot.Unique] = slot
		}
	}
	for _, k := range s.log.head.Kept {
		if k.Kind == 0 {
			continue
		}
		f, err := h.keeper.Take(keptName(s.key, k.Kind, k.ID))
		if errors.Is(err, os.ErrNotExist) {
			continue // noted, but the predecessor died before it was kept
		}
		if err != nil {
			return err
		}
		if k.Kind == keptLocks {
			s.owners[k.ID] = f
			continue
		}
		d, err := h.describe(s, f)
		if err != nil {
			f.Close()
			return err
		}
		s.open[k.ID] = d
	}
	return nil
}

// survivors goes on serving what children of ended bodies use.
func (k *Kinds) survivors() {
	for key := range maps.Clone(k.home.left) {
		j, err := openJournal(k.env.StateDir, key)
		if err != nil {
			k.log.Warn("journal of a carried file", "file", key.String(), "err", err)
			continue
		}
		survivor, stream, guest := j.head.Survivor != 0, j.head.Stream != 0, j.guest()
		j.close(false)
		if !survivor {
			continue
		}
		f, err := k.env.Keeper.Take(carriedName(key))
		if err == nil {
			var s *served
			if s, err = k.home.add(key, unum.NodeID(guest), f, stream, true); err == nil {
				k.outlive(s)
				continue
			}
			f.Close()
		}
		k.log.Warn("a file that children of a placed process use is lost", "file", key.String(), "node", guest, "err", err)
	}
}

// again answers an op that a predecessor had begun.
func (s *served) again(ctx context.Context, d *description, op *Op, slot *journalSlot) Result {
	if slot.Phase == slotDone {
		res := Result{Errno: unix.Errno(slot.Errno), N: slot.N}
		if op.Code != OpRead || res.Errno != 0 {
			return res
		}
		if d.stream != nil {
			return s.spool.answer(slot)
		}
		return d.readBack(slot.Before, slot.N)
	}
	n, done := d.executed(op, slot.Before)
	if !done {
		slot.Phase = slotFree
		return s.execute(ctx, d, op)
	}
	res := Result{N: n}
	slot.done(&res)
	if op.Code == OpRead {
		return d.readBack(slot.Before, n)
	}
	return res
}

// executed says whether a read or write at the position, which began when that
// was before, was executed, and how much it moved. What was written is looked
// for: others may have written since.
func (d *description) executed(op *Op, before int64) (int64, bool) {
	now, err := d.place(op)
	if err != nil || now <= before {
		return 0, false
	}
	if op.Code == OpRead {
		return min(int64(op.Count), now-before), true
	}
	if now-before < int64(len(op.Data)) {
		return 0, false
	}
	const most = 64 << 20
	got := d.readBack(before, min(now-before, most))
	return int64(len(op.Data)), got.Errno == 0 && bytes.Contains(got.Data, op.Data)
}

// readBack reads without regard to how the description was opened.
func (d *description) readBack(off, n int64) Result {
	fd, err := unix.Open(fdPath(d.fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return outcomeOf(0, err)
	}
	f := os.NewFile(uintptr(fd), "read back")
	defer f.Close()
	buf := make([]byte, n)
	k, err := f.ReadAt(buf, off)
	if err != nil && err != io.EOF {
		return outcomeOf(0, err)
	}
	return Result{N: int64(k), Data: buf[:k]}
}
