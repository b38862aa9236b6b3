package calls

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"unum"
	"unum/seccomp"
	"unum/sys"
)

// O_NONBLOCK belongs to the open file description. The description of a pipe
// that was carried here is another than the one at home, which the process's
// siblings there share, and which those that are placed later start from: so
// what is set here is set there first. The other way round nothing is told: what
// is set at home later holds for who is placed after it.

// nonblockReq sets or clears O_NONBLOCK on a description that a deputy holds.
type nonblockReq struct {
	Pid  unum.Pid
	Op   uint64
	Nums []int
	On   bool
}

// nonblock answers fcntl(fd, F_SETFL, flags) and ioctl(fd, FIONBIO, &on).
func (c *Calls) nonblock(n *seccomp.Notif) {
	if !c.cfg.Placed.Hosts() {
		n.Continue()
		return
	}
	ino, ok := pipeOf(n.Tid, int(int32(n.Args[0])))
	if !ok {
		n.Continue()
		return
	}
	on := n.Args[2]&unix.O_NONBLOCK != 0
	if n.Nr == unix.SYS_IOCTL {
		var b [4]byte
		if _, err := sys.ReadMem(n.Tid, n.Args[2], b[:]); err != nil {
			n.Continue() // EFAULT
			return
		}
		on = binary.LittleEndian.Uint32(b[:]) != 0
	}
	if !n.Valid() {
		return
	}
	fd := int(int32(n.Args[0]))
	c.go_(func(ctx context.Context) {
		if o, ok := c.cfg.Placed.Origin(ino); ok {
			c.passNonblock(ctx, o, fd, on)
		}
		if ctx.Err() == nil {
			n.Continue()
		}
	})
}

// passNonblock tells home. fd is the descriptor's number where it was set: if
// the deputy has several descriptions of the pipe, that one is meant.
func (c *Calls) passNonblock(ctx context.Context, o Origin, fd int, on bool) {
	req := &nonblockReq{Pid: o.Pid, Op: o.Op, Nums: o.Nums, On: on}
	for _, num := range o.Nums {
		if num == fd {
			req.Nums = []int{fd}
		}
	}
	peer, err := c.cfg.Peer(o.Home)
	if err == nil {
		_, err = unum.Call[struct{}](ctx, peer, "calls.nonblock", req)
	}
	if err != nil && ctx.Err() == nil {
		c.log.Info("set O_NONBLOCK at home", "pid", o.Pid, "err", err)
	}
}

// onNonblock sets it on what the deputy holds, and passes it on if that was
// carried here in its turn.
func (c *Calls) onNonblock(ctx context.Context, _ unum.NodeID, q *nonblockReq) (*struct{}, error) {
	var errs []error
	for _, num := range q.Nums {
		f, err := c.cfg.Placed.DeputyFile(q.Pid, q.Op, num)
		if errors.Is(err, unix.EBADF) {
			continue // the body has closed it, and its deputy too
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		var st unix.Stat_t
		rc, err := f.SyscallConn()
		if err == nil {
			err = errors.Join(rc.Control(func(fd uintptr) {
				err = errors.Join(unix.SetNonblock(int(fd), q.On), unix.Fstat(int(fd), &st))
			}), err)
		}
		f.Close()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if o, ok := c.cfg.Placed.Origin(st.Ino); ok {
			c.passNonblock(ctx, o, num, q.On)
		}
	}
	return &struct{}{}, errors.Join(errs...)
}

// pipeOf returns the inode of the pipe behind a descriptor.
func pipeOf(tid, fd int) (ino uint64, ok bool) {
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tid, fd))
	if err != nil {
		return 0, false
	}
	_, err = fmt.Sscanf(link, "pipe:[%d]", &ino)
	return ino, err == nil
}
