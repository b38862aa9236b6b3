package file

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"

	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"
)

// The daemon and the file server process of a node talk over a unix socket
// that the file server listens on. First descriptors are exchanged (hello,
// welcome), then both sides send requests and answers in frames:
//
//	u32 length of the rest | u64 request | u8 verb | body
type Verb uint8

const (
	verbAnswer Verb = iota
	verbError

	// fs process to daemon
	VerbOp // u8 length, home node, Op -> Result

	// daemon to fs process
	VerbForget // msgpack Key: it was looked up, but will not be opened
	VerbHandOn // msgpack Position: where the program left its descriptor
	VerbWait   // msgpack Key: answered when home knows that the last descriptor is closed
)

// Registration is what the file server must know of a description that is
// carried to its node. It is told in the name by which the daemon, the only
// one with a descriptor of the mount's root, opens the file: that saves a
// round trip.
type Registration struct {
	_msgpack struct{} `msgpack:",as_array"`

	Key    Key
	Home   string
	Stream bool // a pipe, not a seekable file
	Mode   uint32
	Ino    uint64
	Size   int64
	Pos    int64 // where the new process' position will be
}

// Position is the argument of VerbHandOn.
type Position struct {
	Key Key
	Pos int64
}

// String is the key as file names have it.
func (k Key) String() string { return fmt.Sprintf("%x-%d", k.Placement, k.Num) }

// ParseKey is the reverse of String.
func ParseKey(s string) (k Key, err error) {
	_, err = fmt.Sscanf(s, "%x-%d", &k.Placement, &k.Num)
	return k, err
}

// FileName is the name under which the file is looked up once.
func (r *Registration) FileName() string {
	return r.Key.String() + "." + base64.RawURLEncoding.EncodeToString(marshal(r))
}

// ParseFileName is the reverse of FileName.
func ParseFileName(name string) (*Registration, error) {
	_, code, _ := strings.Cut(name, ".")
	b, err := base64.RawURLEncoding.DecodeString(code)
	if err != nil {
		return nil, err
	}
	r := new(Registration)
	return r, msgpack.Unmarshal(b, r)
}

// SettlePrefix and a key make a name that never exists. The answer to its
// lookup comes after everything that the kernel sent before was seen, and, if
// the file is closed by then, after home knows.
const SettlePrefix = "settle."

// IoctlP asks for P, a 64-bit number, of an open file (_IOR('u', 1, u64)).
const IoctlP = 2<<30 | 8<<16 | 'u'<<8 | 1

// SocketName is where the file server listens, below its node's state
// directory.
const SocketName = "fs.sock"

// ErrLinkDown says that the other process is gone.
var ErrLinkDown = errors.New("link between daemon and file server is down")

const maxFrame = 64 << 20

// Link is one connection between daemon and file server, after hello and
// welcome. Every request is served in a goroutine of its own.
type Link struct {
	conn  *net.UnixConn
	serve func(ctx context.Context, v Verb, body []byte) ([]byte, error)
	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup

	wmu sync.Mutex // one frame at a time

	mu      sync.Mutex
	next    uint64
	pending map[uint64]chan answer
}

type answer struct {
	body []byte
	err  error
}

// NewLink runs the protocol on conn, which it owns.
func NewLink(conn *net.UnixConn, serve func(context.Context, Verb, []byte) ([]byte, error)) *Link {
	l := &Link{conn: conn, serve: serve, pending: map[uint64]chan answer{}}
	l.ctx, l.stop = context.WithCancel(context.Background())
	l.wg.Add(1)
	go l.read()
	return l
}

// Done is closed when the connection has ended.
func (l *Link) Done() <-chan struct{} { return l.ctx.Done() }

// Close ends the connection and waits for the requests being served.
func (l *Link) Close() {
	l.stop()
	l.conn.Close()
	l.wg.Wait()
}

// Call sends one request, whose body is the concatenation of parts.
// ErrLinkDown: it may or may not have been done.
func (l *Link) Call(ctx context.Context, v Verb, parts ...[]byte) ([]byte, error) {
	ch := make(chan answer, 1)
	l.mu.Lock()
	l.next++
	id := l.next
	l.pending[id] = ch
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.pending, id)
		l.mu.Unlock()
	}()
	if err := l.send(id, v, parts...); err != nil {
		return nil, err
	}
	select {
	case a := <-ch:
		return a.body, a.err
	case <-l.ctx.Done():
		return nil, ErrLinkDown
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *Link) send(id uint64, v Verb, parts ...[]byte) error {
	n := 9
	for _, p := range parts {
		n += len(p)
	}
	h := make([]byte, 13, 13+256)
	binary.LittleEndian.PutUint32(h, uint32(n))
	binary.LittleEndian.PutUint64(h[4:], id)
	h[12] = byte(v)
	bufs := net.Buffers{h}
	for _, p := range parts {
		if len(bufs) == 1 && len(h)+len(p) <= cap(h) {
			h = append(h, p...)
			bufs[0] = h
		} else {
			bufs = append(bufs, p)
		}
	}
	l.wmu.Lock()
	_, err := bufs.WriteTo(l.conn)
	l.wmu.Unlock()
	if err != nil {
		l.stop()
		l.conn.Close()
		return ErrLinkDown
	}
	return nil
}

func (l *Link) read() {
	defer l.wg.Done()
	defer l.conn.Close()
	defer l.stop()
	r := bufio.NewReaderSize(l.conn, 32<<10)
	var h [13]byte
	for {
		if _, err := io.ReadFull(r, h[:]); err != nil {
			return
		}
		n := int(binary.LittleEndian.Uint32(h[:]))
		if n < 9 || n > maxFrame {
			return
		}
		id, v := binary.LittleEndian.Uint64(h[4:]), Verb(h[12])
		body := make([]byte, n-9)
		if _, err := io.ReadFull(r, body); err != nil {
			return
		}
		switch v {
		case verbAnswer, verbError:
			a := answer{body: body}
			if v == verbError {
				a = answer{err: errors.New(string(body))}
			}
			l.mu.Lock()
			ch := l.pending[id]
			l.mu.Unlock()
			if ch != nil {
				ch <- a
			}
		default:
			l.wg.Add(1)
			go func() {
				defer l.wg.Done()
				b, err := l.serve(l.ctx, v, body)
				if err != nil {
					l.send(id, verbError, []byte(err.Error()))
					return
				}
				l.send(id, verbAnswer, b)
			}()
		}
	}
}

// SendFiles sends one byte and descriptors with it.
func SendFiles(c *net.UnixConn, b byte, files ...*os.File) error {
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err := c.WriteMsgUnix([]byte{b}, oob, nil)
	return err
}

// RecvFiles receives what SendFiles sent. The files are the caller's.
func RecvFiles(c *net.UnixConn) (byte, []*os.File, error) {
	b, oob := make([]byte, 1), make([]byte, 256)
	n, oobn, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		return 0, nil, err
	}
	var files []*os.File
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return 0, nil, err
	}
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return 0, nil, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			nb, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
			unix.SetNonblock(fd, false)
			files = append(files, os.NewFile(uintptr(fd), "received"))
			if nb&unix.O_NONBLOCK != 0 {
				unix.SetNonblock(fd, true)
			}
		}
	}
	if n == 0 {
		return 0, files, io.EOF
	}
	return b[0], files, nil
}
