package pipe

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"unum/sys"
)

// next makes the next message, nil if there is nothing to say now.
func (s *source) next() ([]byte, *link, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link == nil || !s.ready || s.in == nil {
		return nil, nil, nil
	}
	if msg, err := s.guard(); msg != nil || err != nil || s.fenced {
		return msg, s.link, err
	}
	for {
		held, err := sys.PipeUnread(s.in)
		if err != nil {
			return nil, nil, err
		}
		if s.consumed+uint64(held) > s.sent {
			msg, err := s.copyOut(held)
			return msg, s.link, err
		}
		if s.needed > s.acked && s.sent >= s.needed && !s.syncSent {
			s.syncSent = true
			return binary.LittleEndian.AppendUint64(head(mSync, 0), s.needed), s.link, nil
		}
		if s.endSent {
			return nil, nil, nil
		}
		ev, err := sys.Poll(s.pipe(), unix.POLLIN)
		if err != nil || ev&unix.POLLHUP == 0 || s.user != nil && ev&unix.POLLIN != 0 {
			return nil, nil, err
		}
		// The last writer is gone, so what the pipe holds now is all.
		if now, err := sys.PipeUnread(s.in); err != nil || now != held {
			if err != nil {
				return nil, nil, err
			}
			continue
		}
		s.endSent = true
		return head(mEnd, s.sent), s.link, nil
	}
}

// copyOut makes a message of what was not sent yet and leaves it in the pipe.
func (s *source) copyOut(held int) ([]byte, error) {
	size, err := sys.PipeSize(s.in)
	if err != nil {
		return nil, err
	}
	t, err := s.h.c.pool.get(size)
	if err != nil {
		return nil, err
	}
	defer func() { s.h.c.pool.put(t, s.h.c.null) }()
	n, err := sys.Tee(s.in, t.w, size)
	if err != nil {
		return nil, fmt.Errorf("tee: %w", err)
	}
	skip := int(s.sent - s.consumed)
	if n <= skip {
		return nil, fmt.Errorf("the pipe holds %d bytes, of which %d were teed and %d are known", held, n, skip)
	}
	if s.packet {
		return s.copyRecords(t, n, skip)
	}
	if err := t.drop(s.h.c.null, skip); err != nil {
		return nil, err
	}
	msg := s.h.c.bufs.get(headLen + min(n-skip, maxBytes))
	copy(msg, head(mData, s.sent))
	for off := headLen; off < len(msg); {
		m, err := sys.ReadNow(t.r, msg[off:])
		if err != nil {
			return nil, err
		}
		off += m
	}
	s.sent += uint64(len(msg) - headLen)
	return msg, nil
}

// copyRecords is copyOut for a pipe of packets, each of which a read returns
// by itself.
func (s *source) copyRecords(t *scratch, teed, skip int) ([]byte, error) {
	msg := head(mRecords, s.sent)
	var buf [atomicWrite]byte
	for teed > 0 && len(msg) < maxBytes-atomicWrite-2 {
		n, err := sys.ReadNow(t.r, buf[:])
		if err != nil {
			return nil, err
		}
		teed -= n
		if skip > 0 {
			skip -= n
			continue
		}
		msg = appendRecord(msg, buf[:n])
		s.sent += uint64(n)
	}
	if skip < 0 || len(msg) == headLen {
		return nil, fmt.Errorf("no record begins at %d, %d or more too far from %d", s.sent, skip, s.consumed)
	}
	return msg, nil
}

// consume lets go of everything below to.
func (s *source) consume(to uint64) error {
	for s.consumed < to {
		if s.kept == nil {
			k, err := keptScratch(s.h.ctx, s.h.c.env.Keeper, s.h.scratchName(), s.h.rec.Size)
			if err != nil {
				return err
			}
			s.kept = k
		}
		n, err := sys.Splice(s.in, s.kept.w, int(to-s.consumed))
		if err != nil || n == 0 {
			return fmt.Errorf("consume %d bytes which the pipe should hold: %w", to-s.consumed, err)
		}
		s.consumed += uint64(n)
		s.h.page.setCount(s.consumed, moving)
		if err := s.kept.drop(s.h.c.null, n); err != nil {
			return err
		}
		s.h.page.setCount(s.consumed, idle)
	}
	return nil
}
