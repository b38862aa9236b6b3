package file

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"
)

// MaxIO is the largest read or write that one Op carries.
const MaxIO = 1 << 20

// sharedFlags are the flags that fcntl changes and that belong to the
// description, so that a change at the guest is one at home.
const sharedFlags = unix.O_APPEND | unix.O_NONBLOCK

// execute does op on d. ctx ends when the caller was interrupted.
func (s *served) execute(ctx context.Context, d *description, op *Op) Result {
	switch op.Code {
	case OpRead, OpWrite:
		d.follow(op.Flags)
		if d.stream != nil {
			return d.stream.transfer(ctx, op)
		}
		return d.transfer(op, s.log)
	case OpSeek:
		n, err := unix.Seek(d.fd, op.Off, io.SeekStart)
		return outcomeOf(n, err)
	case OpLseek:
		return d.seekData(op)
	case OpStat:
		var st unix.Stat_t
		if err := unix.Fstat(d.fd, &st); err != nil {
			return outcomeOf(0, err)
		}
		b, err := msgpack.Marshal(NewStat(&st))
		if err != nil {
			return Result{Errno: unix.EIO}
		}
		return Result{Data: b}
	case OpSync:
		if op.Flags&1 != 0 {
			return outcomeOf(0, unix.Fdatasync(d.fd))
		}
		return outcomeOf(0, unix.Fsync(d.fd))
	case OpAllocate:
		var a Allocate
		if msgpack.Unmarshal(op.Data, &a) != nil {
			return Result{Errno: unix.EIO}
		}
		return outcomeOf(0, unix.Fallocate(d.fd, a.Mode, a.Off, a.Length))
	case OpSetattr:
		var a Setattr
		if msgpack.Unmarshal(op.Data, &a) != nil {
			return Result{Errno: unix.EIO}
		}
		return outcomeOf(0, d.setattr(&a))
	case OpReopen:
		var r Reopen
		if msgpack.Unmarshal(op.Data, &r) != nil {
			return Result{Errno: unix.EIO}
		}
		return outcomeOf(0, s.reopen(op.Fh, &r))
	case OpRelease:
		s.mu.Lock()
		delete(s.open, op.Fh)
		s.mu.Unlock()
		d.close()
		s.home.unkeep(s, keptReopen, op.Fh)
		return Result{}
	case OpLock:
		var l Lock
		if msgpack.Unmarshal(op.Data, &l) != nil {
			return Result{Errno: unix.EIO}
		}
		return s.lock(ctx, d, &l)
	case OpUnlock:
		s.mu.Lock()
		f := s.owners[uint64(op.Off)]
		delete(s.owners, uint64(op.Off))
		s.mu.Unlock()
		if f != nil {
			f.Close()
			s.home.unkeep(s, keptLocks, uint64(op.Off))
		}
		return Result{}
	case OpPoll, OpPollWait:
		if d.stream == nil {
			return Result{N: unix.POLLIN | unix.POLLOUT}
		}
		return d.stream.poll(ctx, op)
	}
	return Result{Errno: unix.ENOSYS}
}

func outcomeOf(n int64, err error) Result {
	if err == nil {
		return Result{N: n}
	}
	var e unix.Errno
	if errors.As(err, &e) {
		return Result{Errno: e}
	}
	return Result{Errno: unix.EIO}
}

// follow gives home's description the flags that were changed at the guest.
func (d *description) follow(flags uint32) {
	flags &= sharedFlags
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.flags != flags {
		changed := d.flags ^ flags
		if now, err := unix.FcntlInt(uintptr(d.fd), unix.F_GETFL, 0); err == nil {
			unix.FcntlInt(uintptr(d.fd), unix.F_SETFL, now&^int(changed)|int(flags&changed))
		}
	}
	d.flags = flags
}

// transfer reads or writes a file. A short transfer is returned as such.
// What can be done twice with the same result is not journaled.
func (d *description) transfer(op *Op, log *journal) Result {
	if op.Mode == AfterSeek {
		if _, err := unix.Seek(d.fd, op.Off, io.SeekStart); err != nil {
			return outcomeOf(0, err)
		}
	}
	if op.Mode != AtPosition || op.Unique == 0 {
		return d.move(op)
	}
	slot := log.begin(op.Unique, false)
	if slot != nil {
		before, err := d.place(op)
		if err != nil {
			slot.Phase = slotFree
			return outcomeOf(0, err)
		}
		slot.begun(before)
	}
	log.step("begun")
	res := d.move(op)
	log.step("moved")
	slot.done(&res)
	log.step("done")
	return res
}

// place is where op will read or write: the position, or the end for an
// append.
func (d *description) place(op *Op) (int64, error) {
	d.mu.Lock()
	appends := op.Code == OpWrite && d.flags&unix.O_APPEND != 0
	d.mu.Unlock()
	if !appends {
		return unix.Seek(d.fd, 0, io.SeekCurrent)
	}
	var st unix.Stat_t
	err := unix.Fstat(d.fd, &st)
	return st.Size, err
}

func (d *description) move(op *Op) Result {
	var n int
	var err error
	var buf []byte
	for {
		switch {
		case op.Code == OpRead && op.Mode == AtOffset:
			buf = sized(buf, op.Count)
			n, err = unix.Pread(d.fd, buf, op.Off)
		case op.Code == OpRead:
			buf = sized(buf, op.Count)
			n, err = unix.Read(d.fd, buf)
		case op.Mode == AtOffset:
			n, err = unix.Pwrite(d.fd, op.Data, op.Off)
		default:
			n, err = unix.Write(d.fd, op.Data)
		}
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return outcomeOf(0, err)
	}
	if op.Code == OpRead {
		return Result{N: int64(n), Data: buf[:n]}
	}
	return Result{N: int64(n)}
}

func sized(b []byte, n uint32) []byte {
	if b == nil {
		b = make([]byte, min(n, MaxIO))
	}
	return b
}

// seekData finds data or a hole without moving home's position, as the
// position is the guest kernel's to set.
func (d *description) seekData(op *Op) Result {
	f, err := unix.Open(fdPath(d.fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return outcomeOf(0, err)
	}
	defer unix.Close(f)
	n, err := unix.Seek(f, op.Off, int(op.Flags))
	return outcomeOf(n, err)
}

// setattr changes what a asks for, with the rights of its Cred. A size was
// checked by the guest's kernel: the descriptor is open for writing.
func (d *description) setattr(a *Setattr) error {
	if a.Valid&fuse.FATTR_SIZE != 0 {
		if err := unix.Ftruncate(d.fd, int64(a.Size)); err != nil {
			return err
		}
	}
	const owned = fuse.FATTR_MODE | fuse.FATTR_UID | fuse.FATTR_GID | fuse.FATTR_ATIME | fuse.FATTR_MTIME |
		fuse.FATTR_ATIME_NOW | fuse.FATTR_MTIME_NOW
	if a.Valid&owned == 0 || a.Valid&owned == fuse.FATTR_MTIME && a.Valid&fuse.FATTR_SIZE != 0 {
		return nil
	}
	return as(&a.Cred, func() error {
		if a.Valid&fuse.FATTR_MODE != 0 {
			if err := unix.Fchmod(d.fd, a.Mode&0o7777); err != nil {
				return err
			}
		}
		if a.Valid&(fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
			uid, gid := -1, -1
			if a.Valid&fuse.FATTR_UID != 0 {
				uid = int(a.SetUid)
			}
			if a.Valid&fuse.FATTR_GID != 0 {
				gid = int(a.SetGid)
			}
			if err := unix.Fchown(d.fd, uid, gid); err != nil {
				return err
			}
		}
		if a.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME) != 0 {
			return futimens(d.fd, [2]unix.Timespec{
				stamp(a.Valid, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, a.Atime, a.AtimeNsec),
				stamp(a.Valid, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, a.Mtime, a.MtimeNsec),
			})
		}
		return nil
	})
}

func stamp(valid, set, now uint32, sec int64, nsec uint32) unix.Timespec {
	switch {
	case valid&now != 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	case valid&set != 0:
		return unix.Timespec{Sec: sec, Nsec: int64(nsec)}
	}
	return unix.Timespec{Nsec: unix.UTIME_OMIT}
}

// reopen opens the file again under fh, as an open of /proc/PID/fd/N does,
// with the caller's rights on the file.
func (s *served) reopen(fh uint64, r *Reopen) error {
	s.mu.Lock()
	first, again := s.open[0], s.open[fh]
	s.mu.Unlock()
	if again != nil {
		return nil
	}
	if first == nil {
		return unix.EIO
	}
	flags := r.Flags &^ (unix.O_CREAT | unix.O_EXCL)
	if first.stream != nil && flags&unix.O_ACCMODE != unix.O_RDONLY {
		return unix.EACCES
	}
	var fd int
	err := as(&r.Cred, func() (err error) {
		fd, err = unix.Open(fdPath(first.fd), flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		return err
	})
	if err != nil {
		return err
	}
	file := blockingFile(fd, "reopened")
	d, err := s.home.describe(s, file)
	if err != nil {
		file.Close()
		return err
	}
	s.home.keep(s, keptReopen, fh, file)
	s.mu.Lock()
	s.open[fh] = d
	s.mu.Unlock()
	return nil
}

// fdPath is the name by which this process opens the file of its descriptor
// again.
func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// blockingFile makes a *os.File that Go's poller does not know, whatever its
// flags.
func blockingFile(fd int, name string) *os.File {
	fl, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || fl&unix.O_NONBLOCK == 0 {
		return os.NewFile(uintptr(fd), name)
	}
	unix.SetNonblock(fd, false)
	f := os.NewFile(uintptr(fd), name)
	unix.SetNonblock(fd, true)
	return f
}
