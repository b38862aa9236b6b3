package fsnode

import (
	"os"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"unum/carry/file"
)

// slow starts a request that home executes. buf, if not nil, is given back to
// the pool afterwards; otherwise b is copied as far as it is needed.
func (s *server) slow(h *fuse.InHeader, b []byte, buf *[]byte) {
	n := s.files.node(h.NodeId)
	if n == nil {
		s.reply(h.Unique, unix.EIO)
		if buf != nil {
			buffers.Put(buf)
		}
		return
	}
	switch h.Opcode {
	case opRead:
		in := decode[fuse.ReadIn](b)
		s.begin(h, n, n.stream(), func(r *request) { s.read(r, n, &in) })
	case opWrite:
		in := decode[fuse.WriteIn](b)
		data := b[sizeOf[fuse.WriteIn]():]
		s.begin(h, n, false, func(r *request) {
			s.write(r, n, &in, data[:min(int(in.Size), len(data))])
			buffers.Put(buf)
		})
	case opGetattr:
		s.begin(h, n, false, func(r *request) { s.attr(r, n) })
	case opSetattr:
		in := decode[fuse.SetAttrInCommon](b)
		s.begin(h, n, false, func(r *request) { s.setattr(r, n, &in) })
	case opFsync:
		in := decode[fuse.FsyncIn](b)
		s.begin(h, n, false, func(r *request) {
			s.simple(r, n, in.Fh, &file.Op{Code: file.OpSync, Flags: in.FsyncFlags})
		})
	case opFallocate:
		in := decode[fuse.FallocateIn](b)
		s.begin(h, n, false, func(r *request) {
			arg, _ := msgpack.Marshal(file.Allocate{Mode: in.Mode, Off: int64(in.Offset), Length: int64(in.Length)})
			s.simple(r, n, in.Fh, &file.Op{Code: file.OpAllocate, Data: arg})
		})
	case opLseek:
		in := decode[fuse.LseekIn](b)
		s.begin(h, n, false, func(r *request) {
			res := s.ask(r, n, in.Fh, &file.Op{Code: file.OpLseek, Off: int64(in.Offset), Flags: in.Whence})
			out := fuse.LseekOut{Offset: uint64(res.N)}
			s.reply(r.unique, res.Errno, bytesOf(&out))
		})
	case opGetlk, opSetlk, opSetlkw:
		in := decode[fuse.LkIn](b)
		s.begin(h, n, h.Opcode == opSetlkw, func(r *request) { s.lock(r, n, h.Opcode, &in) })
	}
}

// ask sends op for a request through handle fh (0: the carried description).
func (s *server) ask(r *request, n *node, fh uint64, op *file.Op) file.Result {
	op.Key = n.key
	if fh != 0 {
		hd := s.files.handle(fh)
		if hd == nil {
			return file.Result{Errno: unix.EBADF}
		}
		op.Fh = hd.homeFh()
	}
	return s.up.do(n.home, op, r.interrupted)
}

func (s *server) simple(r *request, n *node, fh uint64, op *file.Op) {
	s.reply(r.unique, s.ask(r, n, fh, op).Errno)
}

// once gives op the request's number, so that home executes it once however
// often it is sent, and takes along what home may forget.
func (r *request) number(n *node, op *file.Op) {
	op.Unique = r.id
	n.mu.Lock()
	op.Acked, n.acked = n.acked, nil
	n.mu.Unlock()
}

// answered notes that the program has the answer of r.
func (r *request) answered(n *node) {
	n.mu.Lock()
	n.acked = append(n.acked, r.id)
	n.mu.Unlock()
}

func (s *server) read(r *request, n *node, in *fuse.ReadIn) {
	op := &file.Op{Code: file.OpRead, Off: int64(in.Offset), Count: in.Size, Flags: in.Flags}
	r.number(n, op)
	res := s.transfer(r, n, in.Fh, in.Pid, op)
	s.reply(r.unique, res.Errno, res.Data)
	r.answered(n)
}

func (s *server) write(r *request, n *node, in *fuse.WriteIn, data []byte) {
	op := &file.Op{Code: file.OpWrite, Off: int64(in.Offset), Flags: in.Flags, Data: data}
	r.number(n, op)
	pid := in.Pid
	if in.WriteFlags&fuse.WRITE_CACHE != 0 {
		pid = 0 // a page of a mapping
	}
	res := s.transfer(r, n, in.Fh, pid, op)
	out := fuse.WriteOut{Size: uint32(res.N)}
	s.reply(r.unique, res.Errno, bytesOf(&out))
	r.answered(n)
}

// transfer finds out where a read or write is to happen, and lets home do it.
func (s *server) transfer(r *request, n *node, fh uint64, pid uint32, op *file.Op) file.Result {
	hd := s.files.handle(fh)
	if hd == nil {
		return file.Result{Errno: unix.EBADF}
	}
	op.Key, op.Fh = n.key, hd.homeFh()
	if n.stream() {
		return s.up.do(n.home, op, r.interrupted)
	}
	if !atPosition(pid, op.Code == file.OpWrite) {
		op.Mode = file.AtOffset
		return s.up.do(n.home, op, r.interrupted)
	}
	// The kernel lets one call at a time use a position, so P is ours until
	// the answer; the lock is for handOn.
	hd.mu.Lock()
	defer hd.mu.Unlock()
	appends := op.Code == file.OpWrite && op.Flags&unix.O_APPEND != 0
	if op.Off != hd.rec.P && !appends {
		op.Mode = file.AfterSeek
	}
	res := s.up.do(n.home, op, r.interrupted)
	if res.Errno == 0 || op.Mode == file.AfterSeek && res.Errno != unix.EINTR {
		hd.rec.P = op.Off + res.N
	}
	return res
}

func (s *server) attr(r *request, n *node) {
	out, errno := s.stat(r, n)
	s.reply(r.unique, errno, bytesOf(&out))
}

func (s *server) stat(r *request, n *node) (fuse.AttrOut, unix.Errno) {
	var out fuse.AttrOut
	res := s.ask(r, n, 0, &file.Op{Code: file.OpStat})
	if res.Errno != 0 {
		return out, res.Errno
	}
	var st file.Stat
	if msgpack.Unmarshal(res.Data, &st) != nil {
		return out, unix.EIO
	}
	out.Attr = fuse.Attr{
		Ino: st.Ino, Size: st.Size, Blocks: st.Blocks, Atime: uint64(st.Atime), Mtime: uint64(st.Mtime), Ctime: uint64(st.Ctime),
		Atimensec: st.Ansec, Mtimensec: st.Mnsec, Ctimensec: st.Cnsec, Mode: n.mode(st.Mode), Nlink: st.Nlink,
		Owner: fuse.Owner{Uid: st.Uid, Gid: st.Gid}, Rdev: st.Rdev, Blksize: st.Blksize,
	}
	if n.stream() {
		out.Attr.Size = 0
	}
	return out, 0
}

func (s *server) setattr(r *request, n *node, in *fuse.SetAttrInCommon) {
	arg, err := msgpack.Marshal(file.Setattr{
		Cred:  file.Cred{Uid: in.InHeader.Uid, Gid: in.InHeader.Gid, Groups: groupsOf(in.Pid)},
		Valid: in.Valid, Size: in.Size, Atime: int64(in.Atime), Mtime: int64(in.Mtime),
		AtimeNsec: in.Atimensec, MtimeNsec: in.Mtimensec, Mode: in.Mode, SetUid: in.Owner.Uid, SetGid: in.Owner.Gid,
	})
	if err != nil {
		s.reply(r.unique, unix.EIO)
		return
	}
	fh, _ := in.GetFh()
	if res := s.ask(r, n, fh, &file.Op{Code: file.OpSetattr, Data: arg}); res.Errno != 0 {
		s.reply(r.unique, res.Errno)
		return
	}
	s.attr(r, n)
}

const lockFlock = 1 // FUSE_LK_FLOCK

func (s *server) lock(r *request, n *node, opcode uint32, in *fuse.LkIn) {
	l := file.Lock{
		Flock: in.LkFlags&lockFlock != 0, Owner: in.Owner, Type: int16(in.Lk.Typ),
		Start: int64(in.Lk.Start), End: int64(in.Lk.End), Pid: int32(in.Lk.Pid),
	}
	switch opcode {
	case opGetlk:
		l.Verb = file.LockGet
	case opSetlk:
		l.Verb = file.LockSet
	case opSetlkw:
		l.Verb = file.LockWait
	}
	arg, err := msgpack.Marshal(&l)
	if err != nil {
		s.reply(r.unique, unix.EIO)
		return
	}
	op := &file.Op{Code: file.OpLock, Data: arg}
	r.number(n, op)
	res := s.ask(r, n, in.Fh, op)
	if opcode != opGetlk {
		s.reply(r.unique, res.Errno)
		r.answered(n)
		if res.Errno == 0 && !l.Flock && l.Type != unix.F_UNLCK {
			s.watchLocker(n, l.Owner, l.Pid)
		}
		return
	}
	var got file.Lock
	var out fuse.LkOut
	if res.Errno == 0 && msgpack.Unmarshal(res.Data, &got) != nil {
		res.Errno = unix.EIO
	}
	out.Lk = fuse.FileLock{Start: uint64(got.Start), End: uint64(got.End), Typ: uint32(got.Type), Pid: uint32(max(got.Pid, 0))}
	s.reply(r.unique, res.Errno, bytesOf(&out))
	r.answered(n)
}

// watchLocker drops the record locks of a process when it ends. The kernel
// does not tell: that would be the FLUSH that NOFLUSH saves.
func (s *server) watchLocker(n *node, owner uint64, pid int32) {
	n.mu.Lock()
	seen := n.watched[pid]
	n.watched[pid] = true
	n.mu.Unlock()
	if seen {
		return
	}
	fd, err := unix.PidfdOpen(int(pid), unix.PIDFD_NONBLOCK)
	if err != nil {
		s.log.Warn("record lock of a process that cannot be watched", "pid", pid, "err", err)
		return
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		defer f.Close()
		stop := make(chan struct{})
		defer close(stop)
		go func() {
			select {
			case <-s.ctx.Done():
			case <-n.released:
			case <-stop:
				return
			}
			f.Close()
		}()
		rc, err := f.SyscallConn()
		if err != nil {
			return
		}
		err = rc.Read(func(fd uintptr) bool {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			k, _ := unix.Poll(p, 0)
			return k > 0
		})
		n.mu.Lock()
		delete(n.watched, pid)
		n.mu.Unlock()
		if err == nil {
			s.up.do(n.home, &file.Op{Key: n.key, Code: file.OpUnlock, Off: int64(owner)}, s.ctx.Done())
		}
	}()
}
