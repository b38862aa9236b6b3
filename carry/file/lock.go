package file

import (
	"context"
	"os"
	"time"

	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"
)

// lock takes, tests or drops a lock. A wait is a repeated try: a thread that
// sits in the kernel for a lock cannot be called back when the program is
// interrupted, and there may be many.
func (s *served) lock(ctx context.Context, d *description, l *Lock) Result {
	try, err := s.locker(d, l)
	if err != nil {
		return outcomeOf(0, err)
	}
	if l.Verb == LockGet {
		return try()
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		res := try()
		if l.Verb != LockWait || res.Errno != unix.EAGAIN && res.Errno != unix.EACCES {
			return res
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return Result{Errno: unix.EINTR}
		case <-t.C:
		}
	}
}

func (s *served) locker(d *description, l *Lock) (func() Result, error) {
	if l.Flock {
		how := map[int16]int{unix.F_RDLCK: unix.LOCK_SH, unix.F_WRLCK: unix.LOCK_EX, unix.F_UNLCK: unix.LOCK_UN}[l.Type]
		return func() Result { return outcomeOf(0, unix.Flock(d.fd, how|unix.LOCK_NB)) }, nil
	}
	f, err := s.owner(d, l.Owner)
	if err != nil {
		return nil, err
	}
	length := l.End - l.Start + 1
	if l.End == 1<<63-1 {
		length = 0
	}
	return func() Result {
		fl := unix.Flock_t{Type: l.Type, Start: l.Start, Len: length}
		if l.Verb != LockGet {
			return outcomeOf(0, unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &fl))
		}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &fl); err != nil {
			return outcomeOf(0, err)
		}
		end := fl.Start + fl.Len - 1
		if fl.Len == 0 {
			end = 1<<63 - 1
		}
		b, err := msgpack.Marshal(Lock{Type: fl.Type, Start: fl.Start, End: end, Pid: fl.Pid})
		if err != nil {
			return Result{Errno: unix.EIO}
		}
		return Result{Data: b}
	}, nil
}

// owner returns the description on which a lock owner's record locks are
// taken. The daemon is one process for all of them, so its own POSIX locks
// would not tell them apart; locks of different descriptions (Linux 3.15) do,
// and conflict with POSIX locks as those do with each other.
func (s *served) owner(d *description, id uint64) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.owners[id]; f != nil {
		return f, nil
	}
	fl, err := unix.FcntlInt(uintptr(d.fd), unix.F_GETFL, 0)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(fdPath(d.fd), fl&unix.O_ACCMODE|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "locks")
	s.owners[id] = f
	s.home.keep(s, keptLocks, id, f)
	return f, nil
}
