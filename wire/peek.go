package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// maxClientHello bounds what is looked at; Go's is below 2 KiB.
const maxClientHello = 16 << 10

var errShort = errors.New("more bytes are needed")

// peekALPN returns the first protocol that the client offers, "" for none,
// and leaves all bytes in the socket. It waits until the ClientHello is
// complete; the caller sets a deadline.
func peekALPN(c *net.TCPConn) (string, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return "", err
	}
	buf := make([]byte, maxClientHello)
	var alpn string
	var perr error
	// The poller is edge triggered: returning false waits for more bytes than
	// the ones just seen.
	err = rc.Read(func(fd uintptr) bool {
		for {
			n, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_PEEK|unix.MSG_DONTWAIT)
			switch {
			case err == unix.EINTR:
				continue
			case err == unix.EAGAIN:
				return false
			case err != nil:
				perr = err
				return true
			case n == 0:
				perr = io.ErrUnexpectedEOF
				return true
			}
			alpn, perr = parseClientHello(buf[:n])
			return perr != errShort || n == len(buf)
		}
	})
	if err != nil {
		return "", err
	}
	return alpn, perr
}

// parseClientHello finds the first ALPN protocol in the records of a
// ClientHello (RFC 8446, 4.1.2; RFC 7301). errShort if b ends too early.
func parseClientHello(b []byte) (string, error) {
	hello, err := handshakeOf(b)
	if err != nil {
		return "", err
	}
	r := reader{hello}
	r.skip(2 + 32)            // legacy_version, random
	r.skip(int(r.uint8()))    // legacy_session_id
	r.skip(int(r.uint16()))   // cipher_suites
	r.skip(int(r.uint8()))    // legacy_compression_methods
	ext := r.take(r.uint16()) // extensions
	if r.b == nil {
		return "", fmt.Errorf("%w: not a ClientHello", errProtocol)
	}
	for e := (reader{ext}); len(e.b) > 0; {
		typ := e.uint16()
		data := e.take(e.uint16())
		if e.b == nil {
			return "", fmt.Errorf("%w: not a ClientHello", errProtocol)
		}
		if typ != 16 { // application_layer_protocol_negotiation
			continue
		}
		p := reader{data}
		list := reader{p.take(p.uint16())}
		name := list.take(uint16(list.uint8()))
		if list.b == nil || len(name) == 0 {
			return "", fmt.Errorf("%w: not a ClientHello", errProtocol)
		}
		return string(name), nil
	}
	return "", nil
}

// handshakeOf joins the records at the start of b to the body of the first
// handshake message, which must be a ClientHello.
func handshakeOf(b []byte) ([]byte, error) {
	var msg []byte
	for {
		if len(b) < 5 {
			return nil, errShort
		}
		if b[0] != 22 || b[1] != 3 { // handshake, TLS
			return nil, fmt.Errorf("%w: not TLS", errProtocol)
		}
		n := int(binary.BigEndian.Uint16(b[3:]))
		if len(b) < 5+n {
			return nil, errShort
		}
		msg, b = append(msg, b[5:5+n]...), b[5+n:]
		if len(msg) < 4 {
			continue
		}
		if msg[0] != 1 {
			return nil, fmt.Errorf("%w: not a ClientHello", errProtocol)
		}
		size := int(msg[1])<<16 | int(msg[2])<<8 | int(msg[3])
		if size > maxClientHello {
			return nil, fmt.Errorf("%w: a ClientHello of %d bytes", errProtocol, size)
		}
		if len(msg) >= 4+size {
			return msg[4 : 4+size], nil
		}
	}
}

// reader takes fields off b; b becomes nil when it was too short.
type reader struct{ b []byte }

func (r *reader) take(n uint16) []byte {
	if r.b == nil || len(r.b) < int(n) {
		r.b = nil
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) skip(n int) { r.take(uint16(n)) }

func (r *reader) uint8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}
