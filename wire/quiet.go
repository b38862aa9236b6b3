package wire

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/sys"
)

// quietPause is the time between attempts to make a quiet connection.
const quietPause = 2 * time.Second

// quietMax bounds what one Hear reads of one connection: a peer that floods it
// is heard, no more.
const quietMax = 64 << 10

// quiet is a connection for one-way messages only. Nobody waits on it: what has
// arrived lies in the socket until Hear. A message over the control connection
// wakes the netpoller, a reader and often a thread more on the other side, and a
// writer on this one; on an idle node that was most of what heartbeats cost.
//
//	none ──Tell, control connection stands──▶ dialing ──▶ stands ──error, or the control connection ends──▶ none
//	                                             └──refused: Tell uses the control connection, tries again later
type quiet struct {
	c    *conn // not running: only its TLS
	sock *quietSocket

	mu  sync.Mutex // of each direction, and buf; never held together with a lock of remote
	buf []byte     // dialed: the frame being written; accepted: what is no whole frame yet
}

// errNotHeard refuses quiet connections: nobody calls Hear.
var errNotHeard = fmt.Errorf("%w: nobody listens to quiet connections", unum.ErrNoMethod)

// nothingNow is what a quietSocket's Read returns for EAGAIN. crypto/tls goes
// on after errors that say they are temporary.
type nothingNow struct{}

func (nothingNow) Error() string   { return "nothing has arrived" }
func (nothingNow) Timeout() bool   { return true }
func (nothingNow) Temporary() bool { return true }

// quietSocket is the socket of a quiet connection, taken from the netpoller.
// Its calls never wait.
type quietSocket struct {
	net.Conn // for the methods that are not used

	mu      sync.Mutex
	fd      int  // -1: closed
	drained bool // the last read took all there was
}

func (s *quietSocket) Read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return 0, net.ErrClosed
	}
	if s.drained {
		return 0, nothingNow{}
	}
	n, err := sys.RawRead(s.fd, b)
	switch {
	case err == unix.EAGAIN:
		return 0, nothingNow{}
	case err != nil:
		return 0, os.NewSyscallError("read", err)
	case n == 0:
		return 0, io.EOF
	}
	s.drained = n < len(b)
	return n, nil
}

// Write fails where it would have to wait: the peer has heard nothing for
// megabytes.
func (s *quietSocket) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return 0, net.ErrClosed
	}
	n, err := sys.RawWrite(s.fd, b)
	if err == nil && n < len(b) {
		err = unix.EAGAIN
	}
	return n, os.NewSyscallError("write", err)
}

func (s *quietSocket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return net.ErrClosed
	}
	err := unix.Close(s.fd)
	s.fd = -1
	return err
}

// hush makes a connection after its hellos a quiet one. c is not to be used
// any more, whatever the result.
func hush(c *conn) (*quiet, error) {
	defer c.ep.disown(c.raw)
	defer c.raw.Close()
	if c.in.Buffered() > 0 {
		return nil, fmt.Errorf("%w: it speaks before it was answered", errProtocol)
	}
	sc, ok := c.raw.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &quietSocket{fd: -1}
	cerr := rc.Control(func(fd uintptr) {
		s.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3)
	})
	if err = errors.Join(cerr, err); err != nil {
		return nil, err
	}
	if !c.ep.own(s) {
		return nil, ErrClosed
	}
	c.out.Conn = s // nobody reads or writes
	return &quiet{c: c, sock: s}, nil
}

// close ends the connection; nil is allowed.
func (q *quiet) close() {
	if q != nil {
		q.c.ep.disown(q.sock)
		q.sock.Close()
	}
}

// write sends one message, or fails at once.
func (q *quiet) write(method string, msg []byte) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.buf = appendNamed(q.buf[:0], frameTell, 0, method, msg)
	_, err := q.c.tls.Write(q.buf)
	return err
}

// hear calls f for every message that has arrived.
func (q *quiet) hear(f func(method, msg []byte)) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sock.mu.Lock()
	q.sock.drained = false
	q.sock.mu.Unlock()
	for read := 0; read < quietMax; {
		if cap(q.buf)-len(q.buf) < 512 {
			q.buf = append(make([]byte, 0, 2*cap(q.buf)+1024), q.buf...)
		}
		n, err := q.c.tls.Read(q.buf[len(q.buf):cap(q.buf)])
		q.buf = q.buf[:len(q.buf)+n]
		read += n
		if errors.Is(err, nothingNow{}) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := q.frames(f); err != nil {
			return err
		}
	}
	return nil
}

// frames takes the whole frames out of buf.
func (q *quiet) frames(f func(method, msg []byte)) error {
	b := q.buf
	for len(b) >= headerSize {
		h, err := parseHeader(b)
		if err != nil {
			return err
		}
		if h.typ != frameTell {
			return fmt.Errorf("%w: frame %d on a quiet connection", errProtocol, h.typ)
		}
		if len(b) < headerSize+h.size {
			break
		}
		method, msg, err := parseNamed(b[headerSize : headerSize+h.size])
		if err != nil {
			return err
		}
		f(method, append([]byte(nil), msg...))
		b = b[headerSize+h.size:]
	}
	q.buf = q.buf[:copy(q.buf, b)]
	return nil
}

// Hear hands the one-way messages that have come over quiet connections to who
// was registered by HandleTell, and returns. Peers begin to use quiet
// connections towards an endpoint after its first Hear; from then on it is to
// be called often.
func (e *Endpoint) Hear() {
	e.hears.Store(true)
	e.mu.RLock()
	remotes := make([]*remote, 0, len(e.remotes))
	for _, r := range e.remotes {
		remotes = append(remotes, r)
	}
	e.mu.RUnlock()
	for _, r := range remotes {
		r.mu.Lock()
		q := r.heard
		r.mu.Unlock()
		if q == nil {
			continue
		}
		err := q.hear(func(method, msg []byte) {
			if f := e.tell(method); f != nil {
				f(r.id, msg)
			}
		})
		if err != nil {
			e.log.Debug("quiet connection ends", "node", r.id, "err", err)
			r.unheard(q)
		}
	}
}

// unheard ends a quiet connection that the peer dialed.
func (r *remote) unheard(q *quiet) {
	r.mu.Lock()
	if r.heard == q {
		r.heard = nil
	}
	r.mu.Unlock()
	q.close()
}

// hush answers the hello of a quiet connection that the peer dialed.
func (r *remote) hush(c *conn, ours hello) error {
	if !r.ep.hears.Load() {
		writeHello(c, r.ep.refusal(errNotHeard))
		return errNotHeard
	}
	if err := writeHello(c, ours); err != nil {
		return err
	}
	q, err := hush(c)
	if err != nil {
		return err
	}
	r.mu.Lock()
	if !r.closed && !r.isLost {
		q, r.heard = r.heard, q
	}
	r.mu.Unlock()
	q.close() // the one before, or this one
	return nil
}

// tellQuietly sends a message over the quiet connection. If there is none it
// returns false, and one is made meanwhile.
func (r *remote) tellQuietly(method string, msg []byte) bool {
	r.mu.Lock()
	q, ctl := r.quiet, r.ctl
	due := q == nil && ctl != nil && !r.hushing && time.Since(r.hushedAt) > quietPause
	if due {
		r.hushing = true
	}
	r.mu.Unlock()
	if due && !r.ep.goOn(func() { r.dialQuiet(ctl) }) {
		return false
	}
	if q == nil {
		return false
	}
	err := q.write(method, msg)
	if err != nil {
		r.mu.Lock()
		if r.quiet == q {
			r.quiet = nil
		}
		r.mu.Unlock()
		q.close()
		r.ep.log.Debug("quiet connection ends", "node", r.id, "err", err)
	}
	return err == nil
}

// dialQuiet makes a quiet connection, to stand while ctl does.
func (r *remote) dialQuiet(ctl *conn) {
	c, _, err := r.ep.connect(r.ep.ctx, r.id, kindQuiet)
	var q *quiet
	if err == nil {
		q, err = hush(c)
	}
	r.mu.Lock()
	r.hushing, r.hushedAt = false, time.Now()
	if err == nil && r.ctl == ctl && !r.closed && !r.isLost {
		q, r.quiet = r.quiet, q
	}
	r.mu.Unlock()
	q.close()
	if err != nil {
		r.ep.log.Debug("no quiet connection", "node", r.id, "err", err)
	}
}
