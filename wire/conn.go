package wire

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"unum"
)

// Limits of what waits to be written on one connection.
const (
	maxQueued = 512 << 10 // data messages wait above it
	keepBuf   = 1 << 20   // larger buffers are not kept
	maxInline = 32 << 10  // more than this is written by the writer
	lazyMax   = 16        // unwritten lazy frames that wake the writer
)

// silentMax is how long sent bytes may stay unacknowledged, and how long a
// connection may be without a sign of life, before TCP gives it up.
const silentMax = 5 * time.Second

const tcpRTOMax = 44 // TCP_RTO_MAX_MS

// conn is a framed connection after its handshake. Frames are written by
// whoever has one if nobody else is writing, else by the connection's writer.
type conn struct {
	ep   *Endpoint
	peer unum.NodeID
	raw  net.Conn // the socket, under the buffers
	tls  *tls.Conn
	out  *outBuffer
	in   *bufio.Reader

	kick chan struct{} // wakes the writer, who then owns writing
	dead chan struct{} // closed by fail
	done chan struct{} // closed when reader and writer have ended

	mu      sync.Mutex
	cond    sync.Cond // space in buf, or err
	buf     []byte    // frames not yet written
	spare   []byte
	writing bool // somebody writes; that one looks at buf again
	lazy    int
	err     error // why it died
}

// framer receives the frames of a connection, in its reader's goroutine: it
// must not wait for anything.
type framer interface {
	// frame takes one frame; body is the callee's. An error ends the connection.
	frame(c *conn, h header, body []byte) error
	// lost is called once, after the last frame.
	lost(c *conn, err error)
}

// newConn wraps a connection whose TLS handshake is done. Its goroutines
// start with run.
func newConn(ep *Endpoint, peer unum.NodeID, raw net.Conn, out *outBuffer, t *tls.Conn) *conn {
	c := &conn{
		ep: ep, peer: peer, raw: raw, tls: t, out: out,
		in:   bufio.NewReaderSize(t, 4096),
		kick: make(chan struct{}, 1), dead: make(chan struct{}), done: make(chan struct{}),
	}
	c.cond.L = &c.mu
	return c
}

// tune sets what every connection of this package wants of TCP.
func tune(raw net.Conn) {
	t, ok := raw.(*net.TCPConn)
	if !ok {
		return
	}
	t.SetNoDelay(true)
	t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: int(silentMax / time.Second)})
	if rc, err := t.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silentMax/time.Millisecond))
			// Ask again every 200 ms or so in the first second, not at ever longer
			// intervals, while little is on its way: the network that comes and
			// goes would be met in a bad moment again and again (Linux 2.6.34,
			// tcp(7); Documentation/networking/tcp-thin.rst).
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_THIN_LINEAR_TIMEOUTS, 1)
			// Go on within a second after the network was cut: Linux 6.15,
			// include/uapi/linux/tcp.h. Older kernels take up to twice the cut.
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, tcpRTOMax, 1000)
		})
	}
}

// run starts reader and writer. It returns at once.
func (c *conn) run(f framer) {
	c.ep.wg.Add(1)
	go func() {
		defer c.ep.wg.Done()
		var writer sync.WaitGroup
		writer.Go(c.writeLoop)
		err := c.readLoop(f)
		c.fail(err)
		writer.Wait()
		f.lost(c, c.cause())
		close(c.done)
	}()
}

func (c *conn) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// fail ends the connection; the first reason stays.
func (c *conn) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
		close(c.dead)
		c.raw.Close()
		c.cond.Broadcast()
	}
	c.mu.Unlock()
}

func (c *conn) readLoop(f framer) error {
	var hb [headerSize]byte
	for {
		h, body, err := c.readFrame(&hb)
		if err != nil {
			return err
		}
		if err := f.frame(c, h, body); err != nil {
			return err
		}
	}
}

func (c *conn) readFrame(hb *[headerSize]byte) (header, []byte, error) {
	if _, err := io.ReadFull(c.in, hb[:]); err != nil {
		return header{}, nil, err
	}
	h, err := parseHeader(hb[:])
	if err != nil || h.size == 0 {
		return h, nil, err
	}
	body := make([]byte, h.size)
	if _, err := io.ReadFull(c.in, body); err != nil {
		return header{}, nil, err
	}
	return h, body, nil
}

// lock begins adding frames to c.buf; flush, queue or put ends it.
func (c *conn) lock() { c.mu.Lock() }

// flush unlocks and sees to it that what is in buf gets written, by this
// goroutine if nobody else is at it.
func (c *conn) flush() {
	if len(c.buf) > maxInline {
		c.queue()
		return
	}
	if c.writing || c.err != nil || len(c.buf) == 0 {
		c.mu.Unlock()
		return
	}
	c.writing = true
	c.writeOnce()
	if len(c.buf) > 0 && c.err == nil {
		c.kick <- struct{}{} // the writer owns writing from here
	} else {
		c.writing = false
	}
	c.mu.Unlock()
}

// queue unlocks and lets the writer write. For readers, which must not wait.
func (c *conn) queue() {
	if !c.writing && c.err == nil && len(c.buf) > 0 {
		c.writing = true
		c.kick <- struct{}{}
	}
	c.mu.Unlock()
}

// put unlocks and leaves the frame for whoever writes next, unless many wait.
func (c *conn) put() {
	if c.lazy++; c.lazy >= lazyMax {
		c.queue()
		return
	}
	c.mu.Unlock()
}

// writeOnce writes buf. mu is held at entry and exit, not meanwhile.
// Preconditions: writing is set by the caller.
func (c *conn) writeOnce() {
	b := c.buf
	c.buf, c.spare, c.lazy = c.spare[:0], nil, 0
	c.mu.Unlock()
	err := c.out.write(c.tls, b)
	if err != nil {
		c.fail(err)
	}
	c.mu.Lock()
	if cap(b) <= keepBuf {
		c.spare = b[:0]
	}
	c.cond.Broadcast()
}

func (c *conn) writeLoop() {
	for {
		select {
		case <-c.dead:
			return
		case <-c.kick:
		}
		c.mu.Lock()
		for len(c.buf) > 0 && c.err == nil {
			c.writeOnce()
		}
		c.writing = false
		c.mu.Unlock()
	}
}

// room locks and waits until data may be added. On error it has unlocked.
func (c *conn) room(ctx context.Context) error {
	c.mu.Lock()
	if len(c.buf) <= maxQueued && c.err == nil {
		return nil
	}
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		c.cond.Broadcast()
		c.mu.Unlock()
	})
	defer stop()
	for len(c.buf) > maxQueued && c.err == nil && ctx.Err() == nil {
		c.cond.Wait()
	}
	if c.err != nil {
		err := c.err
		c.mu.Unlock()
		return linkLost(err)
	}
	if err := ctx.Err(); err != nil && len(c.buf) > maxQueued {
		c.mu.Unlock()
		return err
	}
	return nil
}

// linkLost makes an error of a channel or call out of the death of its
// connection.
func linkLost(err error) error {
	if err == nil {
		return unum.ErrLinkLost
	}
	return fmt.Errorf("%w: %w", unum.ErrLinkLost, err)
}

// outBuffer is the socket under a tls.Conn. It gathers the records of one
// large write, so that they leave in one system call.
type outBuffer struct {
	net.Conn

	mu     sync.Mutex
	gather bool
	buf    []byte
}

func (o *outBuffer) Write(b []byte) (int, error) {
	o.mu.Lock()
	if o.gather {
		o.buf = append(o.buf, b...)
		o.mu.Unlock()
		return len(b), nil
	}
	o.mu.Unlock()
	return o.Conn.Write(b)
}

// write sends b through t, which is on top of o. For one goroutine at a time.
func (o *outBuffer) write(t *tls.Conn, b []byte) error {
	const record = 16 << 10
	for len(b) > record {
		n := min(len(b), 8*record)
		o.mu.Lock()
		o.gather = true
		o.mu.Unlock()
		_, err := t.Write(b[:n])
		o.mu.Lock()
		o.gather = false
		if err == nil {
			_, err = o.Conn.Write(o.buf)
		}
		o.buf = o.buf[:0]
		o.mu.Unlock()
		if err != nil {
			return err
		}
		b = b[n:]
	}
	if len(b) == 0 {
		return nil
	}
	_, err := t.Write(b)
	return err
}
