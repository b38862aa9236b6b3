package pipe

import (
	"encoding/binary"
	"errors"
	"fmt"

	"unum"
)

// The messages of a channel. The source is the half whose pipe is read, the
// sink the one whose pipe is written. Offsets count the bytes of the stream
// from its beginning, which is what the pipe held at the claim.
//
//	source → sink
//	  data     off, bytes
//	  records  off, (length, bytes)…: one write each, never to be torn
//	  end      off: nothing will follow, all writers are gone
//	  sync     id, off: acknowledge at once when off is reached
//	  confirm  id: the acknowledgement that asked for it has been acted on
//	  recall   take back what the reader has not taken, and acknowledge
//	  contest  from now on say what is wanted: nothing comes unasked
//	sink → source
//	  ack      see ack
//	  want     n: a reader waits for n bytes, after contest
//	both
//	  over     from home: it has done all it will for this pipe
//	  bye      from the guest, the answer to over: the half is gone
const (
	mData    = 'D'
	mRecords = 'P'
	mEnd     = 'E'
	mSync    = 'S'
	mConfirm = 'C'
	mRecall  = 'R'
	mContest = 'X'
	mAck     = 'A'
	mWant    = 'W'
	mOver    = 'O'
	mBye     = 'B'
)

const (
	headLen  = 1 + 8
	maxBytes = 64 << 10 // of one data message: what a pipe holds by default
)

var _ = [unum.MaxMessage - headLen - maxBytes]struct{}{} // it fits

// ack is what a sink says: everything below wrote is in its pipe; everything
// below free was taken from there, so that the source may let go of it.
// confirm, if not 0, asks for a confirm message. gone: nobody will ever read
// more. recalled counts the withdrawals: each time wrote has gone back to free,
// and what is not confirmed yet is thrown away.
type ack struct {
	wrote, free uint64
	confirm     uint64
	recalled    uint64
	gone        bool
	closed      bool // gone, because the reader's end was closed
}

func (a ack) encode() []byte {
	b := make([]byte, 0, 1+4*8+1)
	b = append(b, mAck)
	for _, v := range []uint64{a.wrote, a.free, a.confirm, a.recalled} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	switch {
	case a.gone && a.closed:
		return append(b, 2)
	case a.gone:
		return append(b, 1)
	}
	return append(b, 0)
}

func decodeAck(b []byte) (a ack, err error) {
	if len(b) != 1+4*8+1 || b[0] != mAck {
		return a, errBadMessage
	}
	for i, p := range []*uint64{&a.wrote, &a.free, &a.confirm, &a.recalled} {
		*p = binary.LittleEndian.Uint64(b[1+8*i:])
	}
	a.gone, a.closed = b[33] != 0, b[33] == 2
	if a.free > a.wrote {
		return a, errBadMessage
	}
	return a, nil
}

var errBadMessage = errors.New("pipe: malformed message")

// head begins a message with one number.
func head(kind byte, n uint64) []byte {
	return binary.LittleEndian.AppendUint64([]byte{kind}, n)
}

// split takes such a message apart.
func split(b []byte) (n uint64, body []byte, err error) {
	if len(b) < headLen {
		return 0, nil, errBadMessage
	}
	return binary.LittleEndian.Uint64(b[1:]), b[headLen:], nil
}

// numbers takes apart a message of two numbers.
func numbers(b []byte) (x, y uint64, err error) {
	if len(b) != 1+2*8 {
		return 0, 0, errBadMessage
	}
	return binary.LittleEndian.Uint64(b[1:]), binary.LittleEndian.Uint64(b[9:]), nil
}

// appendRecord adds a record to a records message.
func appendRecord(b, rec []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, uint16(len(rec)))
	return append(b, rec...)
}

// records takes the body of a records message apart; it keeps body.
func records(body []byte) (recs [][]byte, err error) {
	for len(body) > 0 {
		if len(body) < 2 {
			return nil, errBadMessage
		}
		n := int(binary.LittleEndian.Uint16(body))
		if n == 0 || n > atomicWrite || len(body) < 2+n {
			return nil, fmt.Errorf("%w: a record of %d bytes", errBadMessage, n)
		}
		recs = append(recs, body[2:2+n])
		body = body[2+n:]
	}
	return recs, nil
}

// atomicWrite is PIPE_BUF: a write of so many bytes is never torn, and a
// packet is never longer. pipe(7). It is a page, too, on the platforms unum
// runs on.
const atomicWrite = 4096
