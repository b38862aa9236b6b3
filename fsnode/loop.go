package fsnode

import (
	"fmt"
	"runtime"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"unum/carry/file"
)

// Requests (include/uapi/linux/fuse.h). go-fuse does not export its numbers.
const (
	opLookup      = 1
	opForget      = 2
	opGetattr     = 3
	opSetattr     = 4
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatfs      = 17
	opRelease     = 18
	opFsync       = 20
	opInit        = 26
	opReaddir     = 28
	opReleasedir  = 29
	opGetlk       = 31
	opSetlk       = 32
	opSetlkw      = 33
	opInterrupt   = 36
	opDestroy     = 38
	opIoctl       = 39
	opPoll        = 40
	opBatchForget = 42
	opFallocate   = 43
	opLseek       = 46
	opCopyRange   = 47
	opCopyRange64 = 53

	notifyPoll   = 1
	notifyResend = 7
)

// maxRequest is a WRITE of file.MaxIO with its headers; a page more, so that
// the data of a buffer of pages never crosses its end.
const maxRequest = file.MaxIO + 4096

var buffers = sync.Pool{New: func() any { b := make([]byte, maxRequest); return &b }}

// loop reads requests and answers them, or hands them to goroutines, until
// the server is closed (nil) or the mount is gone. One thread reads: a second
// one would cost more than it brings.
func (s *server) loop() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	dev := int(s.dev.Fd())
	poll := []unix.PollFd{{Fd: int32(dev), Events: unix.POLLIN}, {Fd: int32(s.wake.Fd()), Events: unix.POLLIN}}
	buf := buffers.Get().(*[]byte)
	for {
		n, err := unix.Read(dev, *buf)
		switch err {
		case nil:
		case unix.EAGAIN:
			if _, err := unix.Poll(poll, -1); err != nil && err != unix.EINTR {
				return fmt.Errorf("poll: %w", err)
			}
			if poll[1].Revents != 0 {
				return nil
			}
			continue
		case unix.EINTR, unix.ENOENT: // ENOENT: the request was interrupted before it was read
			continue
		case unix.ENODEV:
			return fmt.Errorf("the mount is gone: %w", err)
		default:
			return fmt.Errorf("read /dev/fuse: %w", err)
		}
		if n < sizeOf[fuse.InHeader]() {
			return fmt.Errorf("request of %d bytes", n)
		}
		if s.dispatch(buf, (*buf)[:n]) {
			buf = buffers.Get().(*[]byte)
		}
	}
}

// dispatch answers what needs nobody else, and starts the rest. It returns
// true if it has kept the buffer.
func (s *server) dispatch(buf *[]byte, b []byte) (kept bool) {
	h := decode[fuse.InHeader](b)
	if s.resumed && h.Unique&resendBit == 0 && h.Opcode != opInterrupt && h.Opcode != opForget && h.Opcode != opBatchForget {
		s.resumed = false
	}
	switch h.Opcode {
	case opForget, opBatchForget, opInterrupt, opInit:
	default:
		s.tab.read(h.Unique, h.NodeId)
	}
	switch h.Opcode {
	case opForget, opBatchForget:
	case opInterrupt:
		s.interrupt(decode[fuse.InterruptIn](b).Unique)
	case opInit:
		s.init(&h, b)
	case opDestroy:
		s.reply(h.Unique, 0)
	case opLookup:
		s.lookup(&h, b)
	case opOpen:
		return s.open(&h, b)
	case opRelease:
		s.release(&h, b)
	case opStatfs:
		out := fuse.StatfsOut{Bsize: 4096, Frsize: 4096, NameLen: 255}
		s.reply(h.Unique, 0, bytesOf(&out))
	case opIoctl:
		s.ioctl(&h, b)
	case opCopyRange, opCopyRange64:
		s.reply(h.Unique, unix.EINVAL) // callers read and write instead
	case opReaddir, opReleasedir:
		s.reply(h.Unique, 0) // the root shows nothing; OPENDIR's ENOSYS means that it needs no request
	case opGetattr, opSetattr:
		if h.NodeId == fuse.FUSE_ROOT_ID {
			s.rootAttr(&h)
			return false
		}
		s.slow(&h, b, nil)
	case opWrite:
		s.slow(&h, b, buf)
		return true
	case opRead, opFsync, opGetlk, opSetlk, opSetlkw, opFallocate, opLseek:
		s.slow(&h, b, nil)
	case opPoll:
		s.pollRequest(&h, b)
	default:
		s.reply(h.Unique, unix.ENOSYS)
	}
	return false
}

// reply answers a request. It is not told of failures: the kernel has given
// the request up, or the mount is gone, which the loop sees.
func (s *server) reply(unique uint64, errno unix.Errno, body ...[]byte) {
	h := fuse.OutHeader{Unique: unique, Status: -int32(errno), Length: uint32(sizeOf[fuse.OutHeader]())}
	iov := make([][]byte, 1, 3)
	if errno == 0 {
		for _, b := range body {
			if len(b) > 0 {
				h.Length += uint32(len(b))
				iov = append(iov, b)
			}
		}
	}
	iov[0] = bytesOf(&h)
	for {
		if _, err := unix.Writev(int(s.dev.Fd()), iov); err != unix.EINTR {
			break
		}
	}
	s.tab.answered(unique)
}

// notify sends the kernel a message that answers nothing.
func (s *server) notify(code int32, body []byte) error {
	h := fuse.OutHeader{Status: code, Length: uint32(sizeOf[fuse.OutHeader]() + len(body))}
	iov := [][]byte{bytesOf(&h)}
	if len(body) > 0 {
		iov = append(iov, body)
	}
	_, err := unix.Writev(int(s.dev.Fd()), iov)
	return err
}

// resend has the kernel send again what a predecessor has read and not
// answered. A kernel before 6.9 cannot: then those calls fail with EIO, which
// is better than that they never return.
func (s *server) resend() {
	err := unix.ENOSYS
	if !s.cfg.noResend {
		err, _ = s.notify(notifyResend, nil).(unix.Errno)
	}
	left := s.tab.unanswered()
	if err == 0 {
		s.resumed = true
		return
	}
	if len(left) > 0 {
		s.log.Warn("calls that the last file server had begun fail, as the kernel cannot send them again", "calls", len(left), "err", err)
	}
	for _, u := range left {
		if u.Node == 0 { // the kernel's first
			s.agree(u.Unique)
			continue
		}
		if n := s.files.node(u.Node); n != nil {
			s.wg.Add(1)
			go func() { // or it would take what the next one is to get
				defer s.wg.Done()
				s.up.do(n.home, &file.Op{Key: n.key, Code: file.OpCancel, Unique: u.Unique &^ resendBit}, s.ctx.Done())
				s.reply(u.Unique, unix.EIO)
			}()
			continue
		}
		s.reply(u.Unique, unix.EIO)
	}
}

// init hears what the kernel offers.
func (s *server) init(h *fuse.InHeader, b []byte) {
	in := decode[fuse.InitIn](b)
	s.tab.head.Init = initOffer{Flags: in.Flags64(), Major: in.Major, Minor: in.Minor, MaxReadAhead: in.MaxReadAhead}
	s.tab.read(h.Unique, 0)
	s.agree(h.Unique)
}

// agree answers the offer (7.36, Linux 5.17, at least).
func (s *server) agree(unique uint64) {
	in := s.tab.head.Init
	const want = fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_BIG_WRITES | fuse.CAP_POSIX_LOCKS | fuse.CAP_FLOCK_LOCKS |
		fuse.CAP_MAX_PAGES | fuse.CAP_EXPLICIT_INVAL_DATA | fuse.CAP_INIT_EXT |
		fuse.CAP_DIRECT_IO_ALLOW_MMAP | fuse.CAP_HAS_RESEND | fuse.CAP_PARALLEL_DIROPS
	flags := in.Flags & want
	out := fuse.InitOut{
		Major: 7, Minor: min(in.Minor, 36), MaxReadAhead: in.MaxReadAhead,
		Flags: uint32(flags), Flags2: uint32(flags >> 32),
		MaxBackground: 1024, CongestionThreshold: 768,
		MaxWrite: file.MaxIO, MaxPages: file.MaxIO / 4096, TimeGran: 1,
	}
	if in.Major != 7 || in.Minor < 31 {
		s.log.Error("FUSE protocol of this kernel is too old", "major", in.Major, "minor", in.Minor)
		s.reply(unique, unix.EPROTO)
		return
	}
	s.reply(unique, 0, bytesOf(&out))
}
