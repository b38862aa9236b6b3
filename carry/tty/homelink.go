package tty

import (
	"encoding/binary"
	"errors"
	"time"

	"unum"
)

// run keeps the link up.
func (h *home) run() {
	defer h.end()
	wait := 20 * time.Millisecond
	for h.ctx.Err() == nil {
		err := h.connect(&wait)
		h.mu.Lock()
		hung := h.hung
		h.mu.Unlock()
		if hung || errors.Is(err, unum.ErrNodeLost) || errors.Is(err, unum.ErrNoNode) {
			h.k.log.Info("a terminal's link ended", "node", h.key.guest, "err", err)
			return
		}
		select {
		case <-h.ctx.Done():
		case <-time.After(wait):
			wait = min(wait*2, time.Second)
		}
	}
}

var errNoWelcome = errors.New("no welcome")

func (h *home) connect(wait *time.Duration) error {
	peer, err := h.k.cfg.Peer(h.key.guest)
	if err != nil {
		return err
	}
	h.link.mu.Lock()
	hi := hello{Life: h.life, Got: h.link.got}
	h.link.mu.Unlock()
	if hi.Desc, err = h.desc.encode(); err != nil {
		return err
	}
	b, err := marshal(&hi)
	if err != nil {
		return err
	}
	ch, err := peer.Open(h.ctx, Service, b)
	if err != nil {
		return err
	}
	defer ch.Close()
	if b, err = ch.Recv(h.ctx); err != nil {
		return err
	}
	m, err := decodeMessage(b)
	if err != nil {
		return err
	}
	if len(m.B) == 8 {
		h.meet(binary.LittleEndian.Uint64(m.B))
	}
	switch {
	case m.Op != opWelcome:
		return errNoWelcome
	case m.N == welcomeNew:
		h.link.renumber()
	case m.N == welcomeAgain:
		h.link.mu.Lock()
		h.link.got, h.link.done, h.link.acked = 0, 0, 0
		h.link.mu.Unlock()
		h.mu.Lock()
		h.offered, h.passed = false, false // it knows of none
		h.kickLocked()
		h.mu.Unlock()
	}
	*wait = 20 * time.Millisecond
	h.link.attach(h.ctx, ch, m.Ack, nil)
	defer h.link.detach(ch)
	return h.link.receive(h.ctx, ch, h.handle)
}

// meet says which pty the guest has. Of another one than before, positions in
// the output mean nothing.
func (h *home) meet(line uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.page.get(wordLine) != line || h.page.b == nil && h.line != line {
		h.received = -1
		h.page.set(wordWritten, 0)
		h.page.set(wordLine, line)
	}
	h.line = line
}

// handle must not wait: it is the reader of the channel.
func (h *home) handle(m message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch m.Op {
	case opOutput:
		// A guest's new daemon sends again what it cannot know to be here.
		if h.received < 0 {
			h.received, h.written = m.N, m.N
		}
		if skip := h.received - m.N; skip > 0 {
			skip = min(skip, int64(len(m.B)))
			m.B, m.N = m.B[skip:], m.N+skip
		}
		h.received = max(h.received, m.N+int64(len(m.B)))
	case opIdle:
		if m.N == h.release && len(h.ends) == 0 {
			h.closeTTY()
		}
		return
	case opSynced:
		if c := h.syncs[m.N]; c != nil {
			close(c)
			delete(h.syncs, m.N)
		}
		return
	case opWant:
		// It overtakes output, which may stand still (^S), but not modes nor a
		// flush that was before it.
		if !h.queued(opModes, opFlush, opUnread, opWant, opDropIn) {
			h.setWant(m.N)
			return
		}
	case opDropOut:
		for i := range h.queue {
			if q := &h.queue[i]; q.Op == opOutput {
				q.Eof = true // counted, not written
			}
		}
	}
	h.queue = append(h.queue, m)
	poke(h.writec)
}
