package file

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// stream executes the ops of a pipe that several processes read. Every byte
// is taken from the pipe in answer to one reader and goes to that reader, so
// they share it as they would on one machine.
//
// It works on a description of its own, which is non-blocking whatever the
// carried one is, and waits in Go's poller: a thousand waiting readers cost no
// thread.
type stream struct {
	f     *os.File
	rc    syscall.RawConn
	spool *spool
	done  chan struct{}
	wake  chan struct{} // one token: there are waiters

	mu      sync.Mutex
	closed  bool
	waiters []*waiter // in the order they came
}

type waiter struct {
	op  *Op
	res chan Result // buffered
}

func newStream(file *os.File, sp *spool) (*stream, error) {
	fl, err := unix.FcntlInt(file.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(fdPath(int(file.Fd())), fl&unix.O_ACCMODE|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "stream") // non-blocking, so the poller has it
	rc, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	s := &stream{f: f, rc: rc, spool: sp, done: make(chan struct{}), wake: make(chan struct{}, 1)}
	go s.pump()
	return s, nil
}

// close answers what waits with EINTR and waits for the pump.
func (s *stream) close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	for _, w := range s.waiters {
		w.res <- Result{Errno: unix.EINTR}
	}
	s.waiters = nil
	close(s.wake)
	s.mu.Unlock()
	s.f.Close()
	<-s.done
}

// transfer reads, or writes if the descriptor was opened for both.
func (s *stream) transfer(ctx context.Context, op *Op) Result {
	// Less than MaxIO: a full answer makes the guest's kernel ask for the
	// rest of a larger read, which would wait where a pipe returns what it has.
	if op.Code == OpRead {
		op.Count = min(op.Count, slotData)
	}
	return s.submit(ctx, op, op.Flags&unix.O_NONBLOCK == 0)
}

// poll answers with what is ready of POLLIN, POLLOUT, POLLHUP and POLLERR.
func (s *stream) poll(ctx context.Context, op *Op) Result {
	return s.submit(ctx, op, op.Code == OpPollWait)
}

func (s *stream) submit(ctx context.Context, op *Op, wait bool) Result {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return Result{Errno: unix.EIO}
	}
	interrupted := ctx.Err() != nil
	if len(s.waiters) == 0 || op.Code == OpPoll || op.Code == OpPollWait || !wait {
		if !interrupted {
			var res Result
			if s.f != nil {
				s.rc.Control(func(fd uintptr) { res = s.try(int(fd), op) })
			}
			if res.Errno != unix.EAGAIN || !wait {
				s.mu.Unlock()
				return res
			}
		}
	}
	if interrupted {
		s.mu.Unlock()
		return Result{Errno: unix.EINTR}
	}
	w := &waiter{op: op, res: make(chan Result, 1)}
	s.waiters = append(s.waiters, w)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	s.mu.Unlock()
	select {
	case res := <-w.res:
		return res
	case <-ctx.Done():
	}
	s.mu.Lock()
	for i, x := range s.waiters {
		if x == w {
			s.waiters = append(s.waiters[:i], s.waiters[i+1:]...)
			s.mu.Unlock()
			return Result{Errno: unix.EINTR}
		}
	}
	s.mu.Unlock()
	return <-w.res // it was served before it was cancelled
}

// pump serves the waiters in their order whenever the pipe is ready. It takes
// nothing when nobody waits.
func (s *stream) pump() {
	defer close(s.done)
	for range s.wake {
		err := s.rc.Read(func(fd uintptr) bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			left := s.waiters[:0:0]
			blocked := map[Code]bool{}
			for _, w := range s.waiters {
				// A reader is not overtaken by a later one.
				if blocked[w.op.Code] && w.op.Code != OpPollWait {
					left = append(left, w)
					continue
				}
				if res := s.try(int(fd), w.op); res.Errno != unix.EAGAIN {
					w.res <- res
					continue
				}
				blocked[w.op.Code] = true
				left = append(left, w)
			}
			s.waiters = left
			return len(left) == 0
		})
		if err != nil && !errors.Is(err, os.ErrClosed) {
			s.mu.Lock()
			for _, w := range s.waiters {
				w.res <- Result{Errno: unix.EIO}
			}
			s.waiters = nil
			s.mu.Unlock()
		}
	}
}

// try does op without waiting; EAGAIN if it would wait. Lock: s.mu.
func (s *stream) try(fd int, op *Op) Result {
	for {
		var n int
		var err error
		switch op.Code {
		case OpRead:
			return s.spool.take(fd, op)
		case OpWrite:
			n, err = unix.Write(fd, op.Data)
		case OpPoll, OpPollWait:
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLOUT}}
			_, err = unix.Poll(p, 0)
			n = int(p[0].Revents)
			if err == nil && op.Code == OpPollWait && uint32(n)&(op.Flags|unix.POLLHUP|unix.POLLERR) == 0 {
				err = unix.EAGAIN
			}
		}
		if err != unix.EINTR {
			return outcomeOf(int64(n), err)
		}
	}
}
