package sys

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Tee duplicates up to n bytes of the pipe from into the pipe to without
// consuming them. It never blocks: EAGAIN says that from is empty or to is
// full. What was duplicated begins at the head of from. tee(2), 2.6.17.
func Tee(from, to *os.File, n int) (int, error) {
	return pair(from, to, func(in, out int) (int64, error) {
		return unix.Tee(in, out, n, unix.SPLICE_F_NONBLOCK)
	})
}

// Splice moves up to n bytes from one descriptor to another, one of which is a
// pipe. It never blocks on a pipe: EAGAIN says that nothing could be moved. At
// the end of from it returns 0. splice(2), 2.6.17; between pipes the buffers
// move, so that nothing is copied and records are not joined.
func Splice(from, to *os.File, n int) (int, error) {
	return pair(from, to, func(in, out int) (int64, error) {
		return unix.Splice(in, nil, out, nil, n, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
	})
}

func pair(from, to *os.File, call func(in, out int) (int64, error)) (int, error) {
	var n int64
	var err error
	cerr := control(from, func(in int) {
		cerr := control(to, func(out int) {
			for {
				n, err = call(in, out)
				if err != unix.EINTR {
					return
				}
			}
		})
		if cerr != nil {
			err = cerr
		}
	})
	if cerr != nil {
		err = cerr
	}
	if err != nil {
		return 0, err
	}
	return int(n), nil
}

// control runs fn with the descriptor of f, which stays open meanwhile.
func control(f *os.File, fn func(fd int)) error {
	var rc syscall.RawConn
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return rc.Control(func(fd uintptr) { fn(int(fd)) })
}

// ReadNow reads once without waiting, whatever the poller thinks of f. EAGAIN
// if the description is non-blocking and nothing is there.
func ReadNow(f *os.File, p []byte) (n int, err error) {
	cerr := control(f, func(fd int) {
		for {
			if n, err = unix.Read(fd, p); err != unix.EINTR {
				return
			}
		}
	})
	if err == nil {
		err = cerr
	}
	return max(n, 0), err
}

// WriteNow writes once without waiting; see ReadNow.
func WriteNow(f *os.File, p []byte) (n int, err error) {
	cerr := control(f, func(fd int) {
		for {
			if n, err = unix.Write(fd, p); err != unix.EINTR {
				return
			}
		}
	})
	if err == nil {
		err = cerr
	}
	return max(n, 0), err
}

// PipeUnread returns the number of bytes in a pipe; f may be either end.
// FIONREAD (which is TIOCINQ), pipe(7).
func PipeUnread(f *os.File) (n int, err error) {
	cerr := control(f, func(fd int) { n, err = unix.IoctlGetInt(fd, unix.TIOCINQ) })
	if err == nil {
		err = cerr
	}
	return n, err
}

// PipeSize returns a pipe's capacity in bytes. F_GETPIPE_SZ, 2.6.35.
func PipeSize(f *os.File) (n int, err error) {
	cerr := control(f, func(fd int) { n, err = unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0) })
	if err == nil {
		err = cerr
	}
	return n, err
}

// SetPipeSize sets a pipe's capacity, which the kernel rounds up to a power of
// two of pages. EBUSY if it holds more than that now.
func SetPipeSize(f *os.File, size int) error {
	var err error
	cerr := control(f, func(fd int) { _, err = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, size) })
	if err == nil {
		err = cerr
	}
	return err
}

// Poll returns the revents of one descriptor without waiting. poll(2).
func Poll(f *os.File, events int16) (int16, error) {
	p := []unix.PollFd{{Events: events}}
	var err error
	cerr := control(f, func(fd int) {
		p[0].Fd = int32(fd)
		for {
			if _, err = unix.Poll(p, 0); err != unix.EINTR {
				return
			}
		}
	})
	if err == nil {
		err = cerr
	}
	return p[0].Revents, err
}

// ReopenPipe opens the pipe behind f again, for reading or writing as flags
// say. The new description shares nothing with f's but the pipe: O_NONBLOCK set
// on it is seen by nobody else. It counts as a reader or writer of the pipe.
// /proc/self/fd, proc(5).
func ReopenPipe(f *os.File, flags int) (*os.File, error) {
	var nfd int
	var err error
	cerr := control(f, func(fd int) {
		nfd, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), flags|unix.O_CLOEXEC, 0)
	})
	if err == nil {
		err = cerr
	}
	if err != nil {
		return nil, &os.PathError{Op: "reopen", Path: f.Name(), Err: err}
	}
	return os.NewFile(uintptr(nfd), "pipe"), nil
}

// NewPipe makes a pipe of the given capacity (0: the default). rflags and
// wflags are O_ flags of the two descriptions, such as O_NONBLOCK and, for the
// write end, O_DIRECT. Both descriptors are close-on-exec. A File whose
// description is non-blocking waits through the netpoller.
func NewPipe(size, rflags, wflags int) (r, w *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	fail := func(err error) (*os.File, *os.File, error) {
		unix.Close(p[0])
		unix.Close(p[1])
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	if size > 0 {
		if now, err := unix.FcntlInt(uintptr(p[0]), unix.F_GETPIPE_SZ, 0); err == nil && now != size {
			if _, err := unix.FcntlInt(uintptr(p[0]), unix.F_SETPIPE_SZ, size); err != nil {
				return fail(err)
			}
		}
	}
	for i, flags := range []int{rflags, wflags} {
		if flags == 0 {
			continue
		}
		if _, err := unix.FcntlInt(uintptr(p[i]), unix.F_SETFL, flags); err != nil {
			return fail(err)
		}
	}
	return os.NewFile(uintptr(p[0]), "pipe"), os.NewFile(uintptr(p[1]), "pipe"), nil
}
