package file

import (
	"context"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"unum/carry"
)

// spool takes bytes from a pipe in steps that a successor of this daemon can
// finish: pipe → scratch pipe → journal file. Both moves are splices. The
// first one is settled by what the scratch pipe holds, and the second one may
// be repeated, as it writes the same bytes to the same place.
type spool struct {
	key    Key
	log    *journal
	keeper carry.Keeper

	mu   sync.Mutex
	r, w *os.File // the scratch pipe, empty between two reads; nil before the first
}

func (sp *spool) name() string { return "file." + sp.key.String() + ".scratch" }

// open makes the scratch pipe and has it kept, or takes a predecessor's.
func (sp *spool) open() error {
	if sp.r != nil {
		return nil
	}
	if sp.log.head.Scratch != 0 {
		r, err := sp.keeper.Take(sp.name())
		if err != nil {
			return err
		}
		w, err := unix.Open(fdPath(int(r.Fd())), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			r.Close()
			return err
		}
		sp.r, sp.w = r, os.NewFile(uintptr(w), "scratch")
		return nil
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	r, w := os.NewFile(uintptr(p[0]), "scratch"), os.NewFile(uintptr(p[1]), "scratch")
	if err := sp.keeper.Keep(context.Background(), sp.name(), r); err != nil {
		r.Close()
		w.Close()
		return err
	}
	sp.r, sp.w = r, w
	sp.log.head.Scratch = 1
	return nil
}

func (sp *spool) close() {
	if sp.r != nil {
		sp.r.Close()
		sp.w.Close()
		sp.r = nil
	}
}

// take reads up to op.Count bytes, or returns EAGAIN.
func (sp *spool) take(fd int, op *Op) Result {
	if op.Unique == 0 || op.Count == 0 {
		return plainRead(fd, op)
	}
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if err := sp.open(); err != nil {
		return outcomeOf(0, err)
	}
	slot := sp.log.begin(op.Unique, true)
	if slot == nil {
		return plainRead(fd, op)
	}
	slot.begun(0)
	sp.log.step("begun")
	for {
		n, err := unix.Splice(fd, nil, int(sp.w.Fd()), nil, int(min(op.Count, slotData)), unix.SPLICE_F_NONBLOCK)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			slot.Phase = slotFree
			return outcomeOf(0, err)
		}
		sp.log.step("spliced")
		slot.N = n
		slot.Phase = slotMoved
		break
	}
	sp.log.step("moved")
	return sp.finish(slot)
}

func plainRead(fd int, op *Op) Result {
	buf := make([]byte, op.Count)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return outcomeOf(0, err)
		}
		return Result{N: int64(n), Data: buf[:n]}
	}
}

// finish moves what is left of the slot's N bytes from the scratch pipe to the
// file, and answers.
func (sp *spool) finish(slot *journalSlot) Result {
	base := sp.log.data(slot)
	for {
		left, err := unix.IoctlGetInt(int(sp.r.Fd()), unix.TIOCINQ)
		if err != nil {
			return outcomeOf(0, err)
		}
		if left == 0 {
			break
		}
		off := base + slot.N - int64(left)
		if _, err := unix.Splice(int(sp.r.Fd()), nil, int(sp.log.file.Fd()), &off, left, 0); err != nil && err != unix.EINTR {
			return outcomeOf(0, err)
		}
		sp.log.step("stored")
	}
	res := Result{N: slot.N}
	slot.done(&res)
	sp.log.step("done")
	return sp.answer(slot)
}

// answer is the Result of a slot that is done.
func (sp *spool) answer(slot *journalSlot) Result {
	res := Result{N: slot.N, Data: make([]byte, slot.N)}
	if _, err := unix.Pread(int(sp.log.file.Fd()), res.Data, sp.log.data(slot)); err != nil {
		return outcomeOf(0, err)
	}
	return res
}

// recover finishes what a predecessor has left in the scratch pipe.
func (sp *spool) recover() error {
	if sp.log.head.Scratch == 0 {
		return nil
	}
	if err := sp.open(); err != nil {
		return err
	}
	for i := range sp.log.slots {
		slot := &sp.log.slots[i]
		switch slot.Phase {
		case slotBegun:
			left, err := unix.IoctlGetInt(int(sp.r.Fd()), unix.TIOCINQ)
			if err != nil {
				return err
			}
			if left == 0 {
				slot.Phase = slotFree // nothing was taken
				continue
			}
			slot.N = int64(left)
			slot.Phase = slotMoved
			fallthrough
		case slotMoved:
			if res := sp.finish(slot); res.Errno != 0 {
				return res.Errno
			}
		}
	}
	return nil
}
