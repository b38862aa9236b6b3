package wire

import (
	"encoding/binary"
	"errors"
	"fmt"

	"unum"
)

// A frame is: length of the body (4), type (1), id (8), body. Little endian.
const headerSize = 13

// partSize is how much of a call's body one frame carries.
const partSize = 64 << 10

// maxFrame bounds a body; whoever announces more is disconnected.
const maxFrame = unum.MaxMessage + 1024

// MaxCall is the largest body of a call or an answer, in bytes.
const MaxCall = 64 << 20

type frameType uint8

const (
	frameHello     frameType = 1 + iota // both: hello, msgpack
	frameCall                           // total (4), method length (1), method, first part of the request
	frameMore                           // next part of a request
	frameReply                          // total (4), status (1), first part of the answer
	frameReplyMore                      // next part of an answer
	frameCancel                         // the caller no longer waits
	frameAck                            // the caller has the answer
	frameSync                           // id: the next id; body: ids waited for (8 each)
	frameTell                           // method length (1), method, message
	frameOpen                           // service length (1), service, hello
	frameData                           // one message
	frameCredit                         // bytes consumed (4)
	frameClose                          // empty, or the reason of a refusal as encodeError writes it
)

type header struct {
	size int
	typ  frameType
	id   uint64
}

var errProtocol = errors.New("peer breaks the protocol")

func appendHeader(b []byte, typ frameType, id uint64, size int) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(size))
	b = append(b, byte(typ))
	return binary.LittleEndian.AppendUint64(b, id)
}

func appendFrame(b []byte, typ frameType, id uint64, body []byte) []byte {
	return append(appendHeader(b, typ, id, len(body)), body...)
}

// parseHeader decodes a header; b has headerSize bytes.
func parseHeader(b []byte) (header, error) {
	n := binary.LittleEndian.Uint32(b)
	if n > maxFrame {
		return header{}, fmt.Errorf("%w: a frame of %d bytes", errProtocol, n)
	}
	return header{size: int(n), typ: frameType(b[4]), id: binary.LittleEndian.Uint64(b[5:])}, nil
}

// appendCall appends the first frame of a call and returns how much of req it
// holds; the rest follows in frameMore.
func appendCall(b []byte, id uint64, method string, req []byte) ([]byte, int) {
	n := min(len(req), partSize)
	b = appendHeader(b, frameCall, id, 5+len(method)+n)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(req)))
	b = append(b, byte(len(method)))
	b = append(b, method...)
	return append(b, req[:n]...), n
}

// appendReply is appendCall for answers.
func appendReply(b []byte, id uint64, status byte, res []byte) ([]byte, int) {
	n := min(len(res), partSize)
	b = appendHeader(b, frameReply, id, 5+n)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(res)))
	b = append(b, status)
	return append(b, res[:n]...), n
}

// appendNamed appends a tell or an open.
func appendNamed(b []byte, typ frameType, id uint64, name string, body []byte) []byte {
	b = appendHeader(b, typ, id, 1+len(name)+len(body))
	b = append(b, byte(len(name)))
	b = append(b, name...)
	return append(b, body...)
}

// parseNamed splits what appendNamed made. The results alias body.
func parseNamed(body []byte) (name, rest []byte, err error) {
	if len(body) < 1 || len(body) < 1+int(body[0]) {
		return nil, nil, fmt.Errorf("%w: short name", errProtocol)
	}
	n := 1 + int(body[0])
	return body[1:n], body[n:], nil
}

// parseTotal takes the total length off the body of a call or a reply.
func parseTotal(body []byte) (total int, rest []byte, err error) {
	if len(body) < 5 {
		return 0, nil, fmt.Errorf("%w: short frame", errProtocol)
	}
	n := binary.LittleEndian.Uint32(body)
	if n > MaxCall {
		return 0, nil, fmt.Errorf("%w: a call of %d bytes", errProtocol, n)
	}
	return int(n), body[4:], nil
}

// parts puts bodies together that arrive in several frames. One per
// connection and direction; only its reader uses it.
type parts map[uint64]*part

type part struct {
	name  string // method of a call
	code  byte   // status of a reply
	total int
	data  []byte
}

// begin stores the first part of a body.
func (p parts) begin(id uint64, q *part, first []byte) {
	q.data = make([]byte, 0, min(q.total, 4<<20))
	q.data = append(q.data, first...)
	p[id] = q
}

// more adds a part and returns the whole once it is complete.
func (p parts) more(id uint64, body []byte) (*part, error) {
	q := p[id]
	if q == nil || len(q.data)+len(body) > q.total {
		return nil, fmt.Errorf("%w: a part of nothing", errProtocol)
	}
	q.data = append(q.data, body...)
	if len(q.data) < q.total {
		return nil, nil
	}
	delete(p, id)
	return q, nil
}
