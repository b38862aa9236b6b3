package ctl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"unum"
)

// Protocol is the version of the frames and of their bodies.
const Protocol = 2

const (
	maxFrame = 16 << 20 // arguments and environment may be megabytes
	maxFiles = 8        // descriptors in one frame
)

// message is one frame.
type message struct {
	Op    string // request: the method; answer: ok, error, or an event
	Proto int    `msgpack:",omitempty"` // in requests
	Body  msgpack.RawMessage
	Err   *wireError `msgpack:",omitempty"`
	Files int        `msgpack:",omitempty"` // descriptors that travel with this frame
}

// The answers. Every other Op is a method.
const (
	opOK       = "ok"
	opError    = "error"
	opTerminal = "terminal" // with its master
	opStarted  = "started"
	opExit     = "exit"
)

// wireError carries an error so that errors.Is finds its sentinel and its
// errno again at the other side.
type wireError struct {
	Text     string
	Sentinel string // key of unum.Sentinels
	Errno    int
}

func toWire(err error) *wireError {
	w := &wireError{Text: err.Error()}
	for name, s := range unum.Sentinels {
		if errors.Is(err, s) {
			w.Sentinel = name
		}
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		w.Errno = int(errno)
	}
	return w
}

// remoteError is an error of the daemon as its client sees it.
type remoteError struct{ w wireError }

func (e *remoteError) Error() string { return e.w.Text }

func (e *remoteError) Is(target error) bool {
	if s, ok := unum.Sentinels[e.w.Sentinel]; ok && s == target {
		return true
	}
	errno := syscall.Errno(e.w.Errno)
	return errno != 0 && (target == errno || errno.Is(target))
}

func (e *remoteError) As(target any) bool {
	if p, ok := target.(*syscall.Errno); ok && e.w.Errno != 0 {
		*p = syscall.Errno(e.w.Errno)
		return true
	}
	return false
}

// conn frames messages on a unix stream socket. send is for many goroutines,
// recv for one.
type conn struct {
	uc *net.UnixConn

	wmu sync.Mutex // a frame is written whole

	files []*os.File // received, not yet claimed by a frame
}

func newConn(uc *net.UnixConn) *conn { return &conn{uc: uc} }

func (c *conn) Close() error {
	err := c.uc.Close()
	return err
}

// discard closes the descriptors that no frame claimed. Only when nobody
// receives any more.
func (c *conn) discard() {
	for _, f := range c.files {
		f.Close()
	}
	c.files = nil
}

func (c *conn) send(m *message, body any, files ...*os.File) error {
	if body != nil {
		b, err := msgpack.Marshal(body)
		if err != nil {
			return fmt.Errorf("encode %s: %w", m.Op, err)
		}
		m.Body = b
	}
	m.Files = len(files)
	b, err := msgpack.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %s: %w", m.Op, err)
	}
	if len(b) > maxFrame {
		return fmt.Errorf("%s of %d bytes: %w", m.Op, len(b), unix.E2BIG)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(b)), uint32(len(b)))
	frame = append(frame, b...)

	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	n, _, err := c.uc.WriteMsgUnix(frame, oob, nil)
	if err != nil {
		return err
	}
	if n < len(frame) {
		_, err = c.uc.Write(frame[n:])
	}
	return err
}

// recv returns the next message and the descriptors that came with it, which
// are the caller's. io.EOF at a clean end.
func (c *conn) recv() (*message, []*os.File, error) {
	var head [4]byte
	if err := c.readFull(head[:]); err != nil {
		return nil, nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxFrame {
		return nil, nil, fmt.Errorf("frame of %d bytes", n)
	}
	b := make([]byte, n)
	if err := c.readFull(b); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, nil, err
	}
	var m message
	if err := msgpack.Unmarshal(b, &m); err != nil {
		return nil, nil, fmt.Errorf("decode frame: %w", err)
	}
	if m.Files < 0 || m.Files > len(c.files) {
		return nil, nil, fmt.Errorf("frame %s promises %d descriptors, %d came", m.Op, m.Files, len(c.files))
	}
	files := c.files[:m.Files:m.Files]
	c.files = c.files[m.Files:]
	return &m, files, nil
}

func (c *conn) readFull(b []byte) error {
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	for got := 0; got < len(b); {
		n, oobn, flags, _, err := c.uc.ReadMsgUnix(b[got:], oob)
		if oobn > 0 {
			if err := c.takeFiles(oob[:oobn]); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
		if flags&unix.MSG_CTRUNC != 0 {
			return errors.New("too many descriptors in a frame")
		}
		if n == 0 {
			if got == 0 {
				return io.EOF
			}
			return io.ErrUnexpectedEOF
		}
		got += n
	}
	return nil
}

func (c *conn) takeFiles(oob []byte) error {
	scms, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("control message: %w", err)
	}
	for i := range scms {
		fds, err := unix.ParseUnixRights(&scms[i])
		if err != nil {
			continue // not SCM_RIGHTS
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			c.files = append(c.files, os.NewFile(uintptr(fd), "received"))
		}
	}
	if len(c.files) > maxFiles {
		return errors.New("too many descriptors")
	}
	return nil
}
