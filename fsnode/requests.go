package fsnode

import (
	"bytes"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"unum/carry/file"
)

// lookup makes the node of the registration that the name is, or settles.
func (s *server) lookup(h *fuse.InHeader, b []byte) {
	name, _, _ := bytes.Cut(b[sizeOf[fuse.InHeader]():], []byte{0})
	if h.NodeId != fuse.FUSE_ROOT_ID {
		s.reply(h.Unique, unix.ENOTDIR)
		return
	}
	if key, ok := strings.CutPrefix(string(name), file.SettlePrefix); ok {
		s.settle(h, key)
		return
	}
	r, err := file.ParseFileName(string(name))
	if err != nil {
		s.reply(h.Unique, unix.ENOENT)
		return
	}
	n, errno := s.files.register(r)
	if errno == 0 && s.files.opened(n) && !s.files.inUse(n) {
		// A daemon died with it before a body had it, and the next one wants it
		// for the same placement: home is being told, or was, that it is closed.
		errno = unix.EIO
	}
	if errno != 0 {
		s.reply(h.Unique, errno)
		return
	}
	out := fuse.EntryOut{NodeId: n.rec.ID, Generation: 1}
	out.Attr = fuse.Attr{Ino: n.rec.Ino, Mode: n.mode(n.rec.Mode), Nlink: 1, Blksize: 4096}
	if !n.stream() {
		out.Attr.Size = uint64(n.rec.Size)
	}
	s.reply(h.Unique, 0, bytesOf(&out))
}

// settle answers once home knows of the close of a description, if it was
// closed before this request.
func (s *server) settle(h *fuse.InHeader, name string) {
	key, err := file.ParseKey(name)
	n := s.files.keyed(key)
	if err != nil || n == nil || s.files.inUse(n) || !s.files.opened(n) {
		s.reply(h.Unique, unix.ENOENT)
		return
	}
	s.begin(h, n, false, func(r *request) {
		select {
		case <-n.released:
		case <-r.interrupted:
		case <-s.ctx.Done():
			return // a successor answers
		}
		s.reply(r.unique, unix.ENOENT)
	})
}

// ioctl answers the daemon's question for P; nothing else is a device.
func (s *server) ioctl(h *fuse.InHeader, b []byte) {
	in := decode[fuse.IoctlIn](b)
	hd := s.files.handle(in.Fh)
	if in.Cmd != file.IoctlP || hd == nil {
		s.reply(h.Unique, unix.ENOTTY)
		return
	}
	var out fuse.IoctlOut
	p := hd.rec.P
	s.reply(h.Unique, 0, bytesOf(&out), bytesOf(&p))
}

// mode is what the mount shows for home's mode: a pipe looks like a file here.
func (n *node) mode(home uint32) uint32 { return unix.S_IFREG | home&0o7777 }

// rootAttr answers for ever: the root never changes, and who looks at its
// descriptor while no file server runs must not wait for one.
func (s *server) rootAttr(h *fuse.InHeader) {
	out := fuse.AttrOut{AttrValid: 1 << 30, Attr: fuse.Attr{Ino: 1, Mode: unix.S_IFDIR | 0o711, Nlink: 2}}
	s.reply(h.Unique, 0, bytesOf(&out))
}

// openFlags are FUSE's for every file of the mount. NOFLUSH (Linux 5.16): a
// close never waits for this process, so neither the daemon, which holds
// duplicates, nor a dying process can hang on it.
func (n *node) openFlags() uint32 {
	if n.stream() {
		return fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH | fuse.FOPEN_STREAM
	}
	return fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH
}

func (s *server) open(h *fuse.InHeader, b []byte) (kept bool) {
	n := s.files.node(h.NodeId)
	if n == nil {
		s.reply(h.Unique, unix.ENXIO)
		return false
	}
	hd, primary := s.files.openPrimary(n)
	switch {
	case primary && hd == nil:
		s.reply(h.Unique, unix.ENFILE)
	case primary:
		out := fuse.OpenOut{Fh: hd.rec.ID, OpenFlags: n.openFlags()}
		s.reply(h.Unique, 0, bytesOf(&out))
	default:
		in := decode[fuse.OpenIn](b)
		s.begin(h, n, false, func(r *request) { s.openAgain(r, n, &in) })
	}
	return false
}

// openAgain serves an open of /proc/PID/fd/N: a description of its own.
func (s *server) openAgain(r *request, n *node, in *fuse.OpenIn) {
	hd := s.files.openAgain(n)
	if hd == nil {
		s.reply(r.unique, unix.ENFILE)
		return
	}
	arg, err := msgpack.Marshal(file.Reopen{
		Cred:  file.Cred{Uid: in.Uid, Gid: in.Gid, Groups: groupsOf(in.Pid)},
		Flags: int(in.Flags) &^ unix.O_NONBLOCK,
	})
	if err != nil {
		s.reply(r.unique, unix.EIO)
		return
	}
	res := s.up.do(n.home, &file.Op{Key: n.key, Code: file.OpReopen, Fh: hd.homeFh(), Data: arg}, r.interrupted)
	if res.Errno != 0 {
		s.closed(hd)
		s.reply(r.unique, res.Errno)
		return
	}
	out := fuse.OpenOut{Fh: hd.rec.ID, OpenFlags: n.openFlags()}
	s.reply(r.unique, 0, bytesOf(&out))
}

func (s *server) release(h *fuse.InHeader, b []byte) {
	hd := s.files.handle(decode[fuse.ReleaseIn](b).Fh)
	s.reply(h.Unique, 0)
	if hd != nil {
		s.closed(hd)
	}
}

// closed forgets hd and tells home. It does not wait for that.
func (s *server) closed(hd *handle) {
	n := hd.node
	last := s.files.closeHandle(hd)
	op := &file.Op{Key: n.key, Code: file.OpRelease, Fh: hd.homeFh()}
	switch {
	case last:
		op.Fh = 0
	case op.Fh == 0:
		return // others were opened through it, home keeps it for more of them
	}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		s.up.do(n.home, op, s.ctx.Done())
		if last && s.ctx.Err() == nil {
			s.files.dropNode(n, hd)
		}
	}()
}

// begin starts a goroutine for a request of n. waiting says that home may be
// asked to end it.
func (s *server) begin(h *fuse.InHeader, n *node, waiting bool, fn func(*request)) {
	r := &request{
		unique: h.Unique, id: h.Unique &^ resendBit, interrupted: make(chan struct{}), done: make(chan struct{}),
		key: n.key, home: n.home, waiting: waiting, tid: h.Pid,
	}
	s.mu.Lock()
	s.inflight[r.id] = r
	s.mu.Unlock()
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		defer func() {
			s.mu.Lock()
			delete(s.inflight, r.id)
			s.mu.Unlock()
			close(r.done)
		}()
		fn(r)
	}()
}

// interrupt ends a request that waits, as a signal has come for its caller.
func (s *server) interrupt(unique uint64) {
	s.mu.Lock()
	r := s.inflight[unique&^resendBit]
	s.mu.Unlock()
	if r == nil {
		return // answered already
	}
	r.once.Do(func() {
		close(r.interrupted)
		if r.waiting {
			s.wg.Add(1)
			go func() {
				defer s.wg.Done()
				s.up.do(r.home, &file.Op{Key: r.key, Code: file.OpCancel, Unique: r.id}, s.ctx.Done())
			}()
		}
		if killed(r.tid) {
			s.wg.Add(1)
			go func() {
				defer s.wg.Done()
				s.letDie(r)
			}()
		}
	})
}

// grace is how long a killed process waits for the answer to its last call.
const grace = time.Second

// letDie answers the call of a killed process if home does not, as when the
// network is cut: the kernel would keep it alive until then. The call may
// still have its effect, as that of a process that is killed in a write may.
func (s *server) letDie(r *request) {
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-r.done:
		return
	case <-s.ctx.Done():
		return
	case <-t.C:
	}
	s.reply(r.unique, unix.EINTR) // a second answer is refused by the kernel
}
