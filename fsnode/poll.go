package fsnode

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"unum/carry/file"
)

// go-fuse has no poll, so its messages are here (struct fuse_poll_in and
// fuse_poll_out, include/uapi/linux/fuse.h).
type pollIn struct {
	fuse.InHeader
	Fh, Kh        uint64
	Flags, Events uint32
}

type pollOut struct{ Revents, Padding uint32 }

const pollSchedule = 1 // FUSE_POLL_SCHEDULE_NOTIFY: somebody waits

// poll(2); x/sys leaves these two out.
const (
	pollRdNorm = 0x40
	pollWrNorm = 0x100
)

const pollFile = unix.POLLIN | unix.POLLOUT | pollRdNorm | pollWrNorm

func (s *server) pollRequest(h *fuse.InHeader, b []byte) {
	in := decode[pollIn](b)
	hd := s.files.handle(in.Fh)
	if hd == nil || !hd.node.stream() {
		out := pollOut{Revents: pollFile}
		s.reply(h.Unique, 0, bytesOf(&out))
		return
	}
	s.begin(h, hd.node, false, func(r *request) {
		res := s.ask(r, hd.node, in.Fh, &file.Op{Code: file.OpPoll})
		out := pollOut{Revents: revents(res.N)}
		if res.Errno != 0 {
			out.Revents = unix.POLLERR
		}
		if out.Revents == 0 && in.Flags&pollSchedule != 0 {
			s.watch(hd, in.Kh)
		}
		s.reply(r.unique, 0, bytesOf(&out))
	})
}

func revents(n int64) uint32 {
	r := uint32(n) & (unix.POLLIN | unix.POLLHUP | unix.POLLERR)
	if r&unix.POLLIN != 0 {
		r |= pollRdNorm
	}
	return r
}

// watch wakes those who poll hd once home's pipe is readable. One wait a
// handle is enough: whoever is woken asks again.
func (s *server) watch(hd *handle, kh uint64) {
	hd.mu.Lock()
	defer hd.mu.Unlock()
	if hd.polling {
		return
	}
	hd.polling = true
	n := hd.node
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		s.up.do(n.home, &file.Op{Key: n.key, Code: file.OpPollWait, Fh: hd.homeFh(), Flags: unix.POLLIN}, s.ctx.Done())
		hd.mu.Lock()
		hd.polling = false
		hd.mu.Unlock()
		if s.ctx.Err() == nil {
			s.notify(notifyPoll, bytesOf(&kh))
		}
	}()
}
