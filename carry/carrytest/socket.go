package carrytest

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"unum"
)

// ServeKeeper offers k on a unix socket, for daemons in processes of their own
// that are to be killed. It returns when l is closed.
func ServeKeeper(l *net.UnixListener, k *Keeper) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		go serveKeeper(c, k)
	}
}

func serveKeeper(c *net.UnixConn, k *Keeper) {
	defer c.Close()
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	for {
		n, on, _, _, err := c.ReadMsgUnix(buf, oob)
		if err != nil || n < 1 {
			return
		}
		name := string(buf[1:n])
		var f *os.File
		if on > 0 {
			if msgs, err := unix.ParseSocketControlMessage(oob[:on]); err == nil && len(msgs) == 1 {
				if fds, err := unix.ParseUnixRights(&msgs[0]); err == nil && len(fds) == 1 {
					unix.CloseOnExec(fds[0])
					f = os.NewFile(uintptr(fds[0]), name)
				}
			}
		}
		answer, rights := []byte("ok"), []byte(nil)
		switch buf[0] {
		case 'K':
			err = k.Keep(context.Background(), name, f)
		case 'D':
			err = k.Drop(context.Background(), name)
		case 'T':
			var t *os.File
			if t, err = k.Take(name); err == nil {
				f, rights = t, unix.UnixRights(int(t.Fd()))
			}
		}
		if err != nil {
			answer = []byte("no")
		}
		_, _, err = c.WriteMsgUnix(answer, rights, nil)
		if f != nil {
			f.Close()
		}
		if err != nil {
			return
		}
	}
}

// RemoteKeeper is the client of ServeKeeper.
type RemoteKeeper struct {
	mu sync.Mutex
	c  *net.UnixConn
}

// DialKeeper connects to the socket at path.
func DialKeeper(path string) (*RemoteKeeper, error) {
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	return &RemoteKeeper{c: c}, nil
}

func (k *RemoteKeeper) call(op byte, name string, f *os.File) (*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var err error
	msg := append([]byte{op}, name...)
	if f == nil {
		_, _, err = k.c.WriteMsgUnix(msg, nil, nil)
	} else {
		rc, cerr := f.SyscallConn()
		if cerr != nil {
			return nil, cerr
		}
		cerr = rc.Control(func(fd uintptr) { _, _, err = k.c.WriteMsgUnix(msg, unix.UnixRights(int(fd)), nil) })
		err = errors.Join(err, cerr)
	}
	if err != nil {
		return nil, err
	}
	buf, oob := make([]byte, 16), make([]byte, unix.CmsgSpace(4))
	n, on, _, _, err := k.c.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, err
	}
	if string(buf[:n]) != "ok" {
		return nil, fmt.Errorf("kept %q: %w", name, fs.ErrNotExist)
	}
	if on == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:on])
	if err != nil {
		return nil, err
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), name), nil
}

func (k *RemoteKeeper) Keep(ctx context.Context, name string, f *os.File) error {
	_, err := k.call('K', name, f)
	return err
}
func (k *RemoteKeeper) Take(name string) (*os.File, error) { return k.call('T', name, nil) }
func (k *RemoteKeeper) Drop(ctx context.Context, name string) error {
	_, err := k.call('D', name, nil)
	return err
}

// Endpoint is a node in a process of its own. All nodes of a test have their
// sockets in one directory; a channel is one connection. There are no calls.
type Endpoint struct {
	id  unum.NodeID
	dir string

	mu     sync.Mutex
	accept map[string]unum.Acceptor
}

// NewEndpoint makes the endpoint; Listen offers it.
func NewEndpoint(id unum.NodeID, dir string) *Endpoint {
	return &Endpoint{id: id, dir: dir, accept: map[string]unum.Acceptor{}}
}

// Listen serves until the process ends.
func (e *Endpoint) Listen() error {
	path := filepath.Join(e.dir, string(e.id))
	os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go e.serve(c)
		}
	}()
	return nil
}

func (e *Endpoint) serve(c net.Conn) {
	ch := newSocketChannel(c)
	ctx := context.Background()
	var head [3][]byte
	for i := range head {
		m, err := ch.Recv(ctx)
		if err != nil {
			c.Close()
			return
		}
		head[i] = m
	}
	e.mu.Lock()
	a := e.accept[string(head[1])]
	e.mu.Unlock()
	if a == nil {
		ch.Close()
		return
	}
	a(ctx, unum.NodeID(head[0]), head[2], ch)
}

func (e *Endpoint) Handle(string, unum.Handler) {}

func (e *Endpoint) Accept(service string, a unum.Acceptor) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.accept[service] = a
}

func (e *Endpoint) Peer(id unum.NodeID) (unum.Peer, error) { return &socketPeer{e, id}, nil }

type socketPeer struct {
	e  *Endpoint
	id unum.NodeID
}

func (p *socketPeer) Node() unum.NodeID { return p.id }

func (p *socketPeer) Call(context.Context, string, []byte) ([]byte, error) {
	return nil, unum.ErrNoMethod
}

func (p *socketPeer) Open(ctx context.Context, service string, hello []byte) (unum.Channel, error) {
	c, err := net.Dial("unix", filepath.Join(p.e.dir, string(p.id)))
	if err != nil {
		return nil, fmt.Errorf("%w: %v", unum.ErrLinkLost, err)
	}
	ch := newSocketChannel(c)
	for _, m := range [][]byte{[]byte(p.e.id), []byte(service), hello} {
		if err := ch.Send(ctx, m); err != nil {
			c.Close()
			return nil, err
		}
	}
	return ch, nil
}

type socketChannel struct {
	c  net.Conn
	r  *bufio.Reader
	mu sync.Mutex // of writes
}

const closing = 1<<32 - 1 // in place of a length

func newSocketChannel(c net.Conn) *socketChannel {
	return &socketChannel{c: c, r: bufio.NewReaderSize(c, 128<<10)}
}

func (s *socketChannel) Send(ctx context.Context, msg []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(msg)), uint32(len(msg)))
	if _, err := s.c.Write(append(b, msg...)); err != nil {
		return fmt.Errorf("%w: %v", unum.ErrLinkLost, err)
	}
	return nil
}

func (s *socketChannel) Recv(ctx context.Context) ([]byte, error) {
	defer context.AfterFunc(ctx, func() { s.c.Close() })()
	var n [4]byte
	if _, err := io.ReadFull(s.r, n[:]); err != nil {
		return nil, fmt.Errorf("%w: %v", unum.ErrLinkLost, err)
	}
	l := binary.LittleEndian.Uint32(n[:])
	if l == closing {
		return nil, io.EOF
	}
	msg := make([]byte, l)
	if _, err := io.ReadFull(s.r, msg); err != nil {
		return nil, fmt.Errorf("%w: %v", unum.ErrLinkLost, err)
	}
	return msg, nil
}

func (s *socketChannel) Close() error {
	s.mu.Lock()
	s.c.Write(binary.LittleEndian.AppendUint32(nil, closing))
	s.mu.Unlock()
	return s.c.Close()
}
