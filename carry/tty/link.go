package tty

import (
	"context"
	"fmt"
	"sync"

	"github.com/vmihailenco/msgpack/v5"

	"unum"
)

// op is what a message says.
type op uint8

const (
	opWelcome op = iota + 1 // guest: the link is up; not numbered
	opAck                   // Ack alone; not numbered
	// home → guest
	opOffer   // N 1: there is input, 0: no more
	opInput   // B; N 1: end of file
	opModes   // both ways: Modes
	opSize    // both ways: Size
	opFg      // N: foreground group, 0 none of the guest's
	opSignal  // N
	opHangup  //
	opWritten // N: bytes of output written so far
	opFlushed // N: answers opFlush and opUnread
	opRelease // N: home has no placement left here; answered by opIdle
	opSync    // N: answered by opSynced
	// guest → home
	opOutput  // B
	opWant    // N 0: no input, 1: one read, 2: whatever comes
	opFlush   // N: everything before was output; no more input until the next wish
	opUnread  // N, B: unread input; Eof
	opDropIn  // the body flushed its input
	opDropOut // the body flushed its output
	opIdle    // N: nobody at the guest has the terminal open
	opSynced  // N
)

// message is the unit of the link.
type message struct {
	_msgpack struct{} `msgpack:",as_array"`

	Seq, Ack uint64
	Op       op
	N        int64
	Eof      bool
	B        []byte
	Modes    *Modes
	Size     *Size
}

// hello opens a channel.
type hello struct {
	_msgpack struct{} `msgpack:",as_array"`

	Life uint64 // of the home half; another one starts the numbers again
	Got  uint64 // last number received from the guest
	Desc []byte
}

// link numbers messages and keeps them until they are acknowledged, so that
// the two halves see an ordered stream whatever becomes of a connection.
type link struct {
	mu    sync.Mutex
	ch    unum.Channel // nil while there is none
	seq   uint64       // last number given
	got   uint64       // last number received
	done  uint64       // last number whose message has had its effect
	acked uint64       // last number that we told
	shut  bool         // nothing is sent any more
	keep  []message    // not acknowledged by the peer
}

// send queues m and, where there is a channel, sends it. It waits only while the
// channel's window is full.
func (l *link) send(ctx context.Context, m message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seq++
	m.Seq = l.seq
	l.keep = append(l.keep, m)
	l.put(ctx, m)
}

// Preconditions: mu is held.
func (l *link) put(ctx context.Context, m message) {
	if l.ch == nil || l.shut {
		return
	}
	m.Ack, l.acked = l.done, l.done
	b, err := msgpack.Marshal(&m)
	if err == nil {
		err = l.ch.Send(ctx, b)
	}
	if err != nil {
		l.ch = nil // its reader sees the error as well and begins anew
	}
}

// attach takes a new channel into use and sends again what the peer lacks.
func (l *link) attach(ctx context.Context, ch unum.Channel, peerGot uint64, first *message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ch = ch
	if first != nil {
		l.put(ctx, *first)
	}
	l.trim(peerGot)
	for _, m := range l.keep {
		l.put(ctx, m)
	}
}

func (l *link) detach(ch unum.Channel) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ch == ch {
		l.ch = nil
	}
}

// renumber begins anew with what the peer has not had.
func (l *link) renumber() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.keep {
		l.keep[i].Seq = uint64(i + 1)
	}
	l.seq, l.got, l.done, l.acked = uint64(len(l.keep)), 0, 0, 0
}

// close lets nothing out any more: what is done from now on will be done again
// by a successor.
func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shut = true
}

func (l *link) trim(ack uint64) {
	i := 0
	for i < len(l.keep) && l.keep[i].Seq <= ack {
		i++
	}
	l.keep = append(l.keep[:0], l.keep[i:]...)
}

// receive reads ch until it fails and hands every new message to fn, in order.
func (l *link) receive(ctx context.Context, ch unum.Channel, fn func(message)) error {
	for {
		b, err := ch.Recv(ctx)
		if err != nil {
			return err
		}
		m, err := decodeMessage(b)
		if err != nil {
			return err
		}
		l.mu.Lock()
		l.trim(m.Ack)
		fresh := m.Seq != 0 && m.Seq == l.got+1
		if fresh {
			l.got = m.Seq
		} else if m.Seq > l.got+1 {
			l.mu.Unlock()
			return fmt.Errorf("message %d after %d", m.Seq, l.got)
		}
		l.mu.Unlock()
		if !fresh {
			continue
		}
		fn(m)
		l.mu.Lock()
		l.done = m.Seq
		if l.done-l.acked >= 64 {
			l.put(ctx, message{Op: opAck})
		}
		l.mu.Unlock()
	}
}

func decodeMessage(b []byte) (m message, err error) {
	if err = msgpack.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("terminal message: %w", err)
	}
	if m.Modes != nil && len(m.Modes.Cc) > 64 {
		return m, fmt.Errorf("terminal message: modes of %d characters", len(m.Modes.Cc))
	}
	return m, nil
}

func marshal(v any) ([]byte, error) { return msgpack.Marshal(v) }

func unmarshal(b []byte, v any) error { return msgpack.Unmarshal(b, v) }
