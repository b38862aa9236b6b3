package tty

import (
	"context"
	"encoding/binary"
	"time"

	"unum"
)

// accept serves a channel that a home has opened.
func (g *Guests) accept(ctx context.Context, from unum.NodeID, b []byte, ch unum.Channel) {
	defer ch.Close()
	var hi hello
	if err := unmarshal(b, &hi); err != nil {
		g.k.log.Warn("terminal link refused", "node", from, "err", err)
		return
	}
	d, err := decodeDesc(hi.Desc)
	if err != nil {
		g.k.log.Warn("terminal link refused", "node", from, "err", err)
		return
	}
	l, elsewhere := g.await(ctx, lineKey{from, d.Sid, d.Dev})
	if elsewhere {
		g.decline(ctx, ch)
		return
	}
	if l == nil {
		return // home asks again if it still has somebody here
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(l.ctx, cancel)
	defer stop()
	if !l.take(ctx, ch, &hi) {
		return
	}
	err = l.link.receive(ctx, ch, func(m message) {
		l.handle(m)
		l.mu.Lock()
		l.page.set(wordGot, m.Seq)
		l.mu.Unlock()
	})
	l.mu.Lock()
	if l.ch == ch {
		l.ch = nil
	}
	done := l.attended
	l.mu.Unlock()
	l.link.detach(ch)
	close(done)
	if err != nil && ctx.Err() == nil {
		g.k.log.Debug("terminal link ended", "node", from, "err", err)
	}
}

// awaitTime is how long a link waits for the start request that it belongs to.
const awaitTime = 10 * time.Second

// await returns the line of a link, which may come before the placement does.
// elsewhere says that the placement uses a terminal that is here already.
func (g *Guests) await(ctx context.Context, key lineKey) (l *Line, elsewhere bool) {
	t := time.NewTimer(awaitTime)
	defer t.Stop()
	for {
		g.mu.Lock()
		l, made := g.lines[key], g.made
		elsewhere = g.elsewhere[key]
		g.mu.Unlock()
		if l != nil || elsewhere {
			return l, elsewhere
		}
		select {
		case <-made:
		case <-t.C:
			return nil, false
		case <-ctx.Done():
			return nil, false
		case <-g.k.ctx.Done():
			return nil, false
		}
	}
}

// decline answers a home whose terminal came back to where it is known: nobody
// uses this link.
func (g *Guests) decline(ctx context.Context, ch unum.Channel) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(g.k.ctx, cancel)()
	var k link
	k.attach(ctx, ch, 0, &message{Op: opWelcome, N: welcomeNew})
	_ = k.receive(ctx, ch, func(m message) {
		switch m.Op {
		case opRelease:
			k.send(ctx, message{Op: opIdle, N: m.N})
		case opSync:
			k.send(ctx, message{Op: opSynced, N: m.N})
		}
	})
}

// take makes ch the line's channel, in place of an older one.
func (l *Line) take(ctx context.Context, ch unum.Channel, hi *hello) bool {
	l.mu.Lock()
	for l.ch != nil {
		old, done := l.ch, l.attended
		l.mu.Unlock()
		old.Close()
		select {
		case <-done:
		case <-ctx.Done():
			return false
		}
		l.mu.Lock()
	}
	defer l.mu.Unlock()
	l.ch, l.attended = ch, make(chan struct{})
	known := welcomeBack
	switch {
	case l.life != hi.Life:
		// Another home half: the numbers begin again, and what the old one was
		// told no longer matters. Output that it has not acknowledged goes to the
		// new one, which may know that it has some of it.
		known = welcomeNew
		l.life = hi.Life
		l.page.set(wordLife, hi.Life)
		l.restart()
	case l.resumed:
		known = welcomeAgain
	}
	l.resumed = false
	welcome := message{Op: opWelcome, N: known, B: binary.LittleEndian.AppendUint64(nil, l.id)}
	got := hi.Got
	if known != welcomeBack {
		got = 0
	}
	l.link.attach(ctx, ch, got, &welcome)
	return true
}

// What a guest's welcome says.
const (
	welcomeNew   int64 = iota // it did not know this home half
	welcomeBack               // it did
	welcomeAgain              // it did, and its own numbers begin again
)

// restart forgets a home half. Preconditions: mu is held.
func (l *Line) restart() {
	k := &l.link
	k.mu.Lock()
	defer k.mu.Unlock()
	// Acknowledged is what home had taken, which is not yet written.
	out := l.unwritten()
	for _, m := range k.keep {
		if m.Op == opModes {
			out = append(out, m)
		}
	}
	for i := range out {
		out[i].Seq = uint64(i + 1)
	}
	k.seq, k.got, k.done, k.acked, k.keep = uint64(len(out)), 0, 0, 0, out
	l.page.set(wordGot, 0)
	l.want, l.offered, l.release = 0, false, 0
	for id, c := range l.flushes {
		close(c)
		delete(l.flushes, id)
	}
	poke(l.watchc)
}

// unwritten is the output that home's terminal may not have. Preconditions: mu
// is held, or nobody else knows the line.
func (l *Line) unwritten() (out []message) {
	pos := l.written
	for b := l.page.take(l.written, l.sent); len(b) > 0; {
		n := min(len(b), 4096)
		out = append(out, message{Op: opOutput, N: pos, B: b[:n:n]})
		b, pos = b[n:], pos+int64(n)
	}
	return out
}
