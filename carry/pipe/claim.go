package pipe

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
	"unum/sys"
)

// SoleReader says if p is the only process at home that may read from the pipe
// fd, so that bytes may be carried ahead of its reads. All others that hold the
// read end must be at rest:
//
//   - a deputy, which holds it for a body and reads nothing; but not if this
//     daemon serves that pipe to that body;
//   - an ancestor of p that waits for its only child, and so can do nothing
//     before this branch of the tree ends or stops;
//   - the parent of p, suspended in vfork, or a thread of it is: mostly it will
//     wait, or close what it has made for the child. The home half looks again
//     when the exec is over, before it carries anything; see contest.go;
//   - a process that was born in vfork and has not executed yet, if the exec will
//     close the descriptor: a sibling of p, made at the same time.
//
// Anything else, also what cannot be found out, makes it false. That p has the
// pipe's other end as well makes no difference here.
func SoleReader(env *carry.Env, p *carry.Proc, fd *carry.FD) (bool, error) {
	sole, _, err := soleReader(env, nil, p, fd)
	return sole, err
}

// soleReader is SoleReader; doubt says that it must be looked again when the
// exec is over.
func soleReader(env *carry.Env, c *Carrier, p *carry.Proc, fd *carry.FD) (sole, doubt bool, err error) {
	t, err := tableFor(env, p)
	if err != nil {
		return false, false, err
	}
	if h := t.self(fd.Stat.Ino); h.read && !c.isIdle(fd.Stat.Ino) {
		return false, false, nil
	}
	for _, h := range t.holders(fd.Stat.Ino) {
		if h.pid == p.HostPid || !h.read {
			continue
		}
		switch atRest(env, h, p.HostPid, fd.Stat.Ino, true) {
		case active:
			return false, false, nil
		case busy:
			return false, false, stays(fmt.Sprintf("a pipe that process %d may be about to close, or to read", h.pid))
		case spawning:
			doubt = true
		}
	}
	return true, doubt, nil
}

// soleWriter is the same for the write end. A second writer is nothing wrong,
// but then records must be kept whole.
func soleWriter(env *carry.Env, p *carry.Proc, fd *carry.FD) (bool, error) {
	t, err := tableFor(env, p)
	if err != nil {
		return false, err
	}
	if h := t.self(fd.Stat.Ino); h.write {
		return false, nil
	}
	for _, h := range t.holders(fd.Stat.Ino) {
		if h.pid != p.HostPid && h.write {
			if st := atRest(env, h, p.HostPid, fd.Stat.Ino, false); st == active || st == busy {
				return false, nil
			}
		}
	}
	return true, nil
}

// A shell that has just forked p, and what it has forked with p, hold its pipes
// for some microseconds more. They are looked at again for as long as an exec
// elsewhere takes; then it stays here.
const (
	lookAgain = 8
	lookPause = 300 * time.Microsecond
)

// atRest says if a holder of one end leaves it alone while p's body runs:
// waiting; spawning if that will be seen when p has executed; active if not;
// busy if it has not come to any rest yet. A holder that has closed it meanwhile
// counts as waiting.
func atRest(env *carry.Env, h holder, pid int, ino uint64, read bool) stance {
	if env.Deputy != nil && env.Deputy(h.pid) || h.passing(read) {
		return waiting
	}
	for i := 0; ; i++ {
		st := stanceOf(h.pid, pid)
		h = holds(h.pid, ino) // after the look, or it may have closed the pipe before
		switch {
		case read && !h.read, !read && !h.write, st == waiting:
			return waiting
		case st == spawning:
			if !read && h.inheritsW {
				return active
			}
			return spawning
		case st == active, i == lookAgain:
			return st
		}
		time.Sleep(lookPause)
	}
}

// broken says if the write end f has no reader.
func broken(f *os.File) bool {
	p := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLOUT}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 1 && p[0].Revents&unix.POLLERR != 0
}

// passing says if a holder has its end only until its exec, which is to come.
func (h *holder) passing(read bool) bool {
	if read && h.inherits || !read && h.inheritsW {
		return false
	}
	return unborn(h.pid)
}

// Claim implements carry.Kind.
func (k *kind) Claim(ctx context.Context, p *carry.Proc, fd *carry.FD) (*carry.Desc, error) {
	if fd.Stat.Mode&unix.S_IFMT != unix.S_IFIFO {
		return nil, nil
	}
	mode := fd.Flags & unix.O_ACCMODE
	if mode == unix.O_RDONLY && k.dir != 'r' || mode == unix.O_WRONLY && k.dir != 'w' {
		return nil, nil
	}
	switch {
	case mode == unix.O_RDWR:
		return nil, stays("a pipe open for reading and writing at once")
	case !strings.HasPrefix(fd.Link, "pipe:["):
		return nil, stays("a named FIFO")
	case fd.Flags&unix.O_DIRECT != 0:
		return nil, stays("a pipe in packet mode")
	}
	dd := desc{Dev: uint64(fd.Stat.Dev), Ino: fd.Stat.Ino, Uid: fd.Stat.Uid, Gid: fd.Stat.Gid}
	own := holds(p.HostPid, fd.Stat.Ino)
	if k.dir == 'r' || own.inherits {
		sole, doubt, err := soleReader(k.c.env, k.c, p, fd)
		dd.Doubt, dd.Caller = doubt, p.HostPid
		switch {
		case err != nil:
			return nil, err
		case sole && own.inherits && own.inheritsW:
			return nil, stays("a pipe whose two ends the program holds")
		case !sole && k.dir == 'r':
			k.c.rivalTo(fd.Stat.Ino)
			return nil, nil
		}
	}
	if k.dir == 'w' {
		sole, err := soleWriter(k.c.env, p, fd)
		if err != nil {
			return nil, err
		}
		dd.Records = !sole
	}
	f, err := sys.PidfdGetfd(p.PidFD, fd.Nums[0])
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if k.dir == 'w' && broken(f) {
		// Its first write must fail, and not the one after the news has come.
		return nil, stays("a pipe that nobody reads any more")
	}
	if dd.Size, err = sys.PipeSize(f); err != nil {
		return nil, err
	}
	if k.dir == 'r' && !dd.Doubt {
		ended := hungUp(f) // first, so that what is seen then is all
		var all bool
		if dd.Prefill, all, err = k.c.peek(f, dd.Size); err != nil {
			return nil, err
		}
		dd.Ended = ended && all
	}
	data, err := msgpack.Marshal(&dd)
	if err != nil {
		return nil, err
	}
	return &carry.Desc{Data: data}, nil
}

// rivalTo tells halves that carry a pipe that another body is about to read
// it, through a kind that asks home for every read.
func (c *Carrier) rivalTo(ino uint64) {
	c.mu.Lock()
	var ss []*source
	for k, h := range c.halves {
		if s, ok := h.eng.(*source); ok && k.Side == home && k.Ino == ino {
			ss = append(ss, s)
		}
	}
	c.mu.Unlock()
	for _, s := range ss {
		s.doubt(true)
	}
}

func stays(what string) error { return fmt.Errorf("%s: %w", what, unum.ErrStaysHome) }

// peek copies what a pipe holds, or its beginning, and leaves it there.
func (c *Carrier) peek(f *os.File, size int) (b []byte, all bool, err error) {
	held, err := sys.PipeUnread(f)
	if err != nil || held == 0 {
		return nil, true, err
	}
	t, err := c.pool.get(size)
	if err != nil {
		return nil, false, err
	}
	defer c.pool.put(t, c.null)
	n, err := sys.Tee(f, t.w, size)
	if err != nil {
		if err == unix.EAGAIN {
			err = nil
		}
		return nil, false, err
	}
	b = make([]byte, min(n, maxBytes))
	for off := 0; off < len(b); {
		m, err := sys.ReadNow(t.r, b[off:])
		if err != nil {
			return nil, false, err
		}
		off += m
	}
	return b, len(b) == held, nil
}
