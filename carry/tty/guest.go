package tty

import (
	"context"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
	"unum/sys"
)

// Agent is the guest's agent of a session, which has the Line's slave as its
// controlling terminal and can act on it.
type Agent interface {
	// SetForeground makes pgid the foreground group (TIOCSPGRP). 0 stands for
	// the agent's own group, which no body is in.
	SetForeground(ctx context.Context, pgid unum.Pid) error
}

// Guests are the terminals of other nodes' sessions that bodies here use.
type Guests struct {
	k *Kind

	mu     sync.Mutex
	closed bool
	lines  map[lineKey]*Line
	// elsewhere are terminals that are lines here under another name.
	elsewhere map[lineKey]bool
	made      chan struct{} // closed and replaced when one of the two grows
}

type lineKey struct {
	home unum.NodeID
	sid  unum.Pid
	dev  uint32
}

// Session returns the guest's terminal of a home session for one placement, and
// makes it if there is none. Preconditions: d.Ctty, or the caller makes no
// controlling terminal of it. The placement closes its End when it is over.
func (g *Guests) Session(ctx context.Context, pl carry.Placement, d *Desc) (*End, error) {
	return g.session(ctx, pl, d, false)
}

// ResumeSession is Session for a placement that was running when this daemon's
// predecessor died. SetAgent is to be called again.
func (g *Guests) ResumeSession(ctx context.Context, pl carry.Placement, d *Desc) (*End, error) {
	return g.session(ctx, pl, d, true)
}

func (g *Guests) session(_ context.Context, pl carry.Placement, d *Desc, resume bool) (*End, error) {
	l, err := g.line(pl.Home, d, true)
	if err != nil {
		return nil, wrap("carry", "", pl.Pid, "terminal", err)
	}
	e, err := l.attach(pl, d, resume)
	return e, wrap("carry", "", pl.Pid, "terminal", err)
}

// resume finds the terminals that a predecessor had, so that children of bodies
// that have ended go on writing, and EndSession finds them.
func (g *Guests) resume() {
	if g.k.cfg.Keeper == nil || g.k.cfg.StateDir == "" {
		return
	}
	files, err := filepath.Glob(filepath.Join(g.k.cfg.StateDir, "tty.*"))
	if err != nil {
		return
	}
	for _, f := range files {
		if err := g.resumeLine(f); err != nil {
			g.k.log.Warn("a terminal is not resumed", "file", f, "err", err)
			_ = os.Remove(f)
		}
	}
}

func (g *Guests) resumeLine(file string) error {
	name, err := url.PathUnescape(filepath.Base(file))
	if err != nil {
		return err
	}
	p, found, err := openPage(g.k.cfg.StateDir, name, ringSize)
	if err != nil {
		return err
	}
	d, derr := p.desc()
	_ = p.close(false)
	if !found || derr != nil {
		return errors.Join(derr, g.k.cfg.Keeper.Drop(g.k.ctx, name))
	}
	f, err := g.k.cfg.Keeper.Take(name)
	if err != nil {
		return err
	}
	f.Close()
	home, ok := strings.CutPrefix(name, "tty.")
	home, ok2 := strings.CutSuffix(home, "."+d.Sid.String()+"."+strconv.FormatUint(uint64(d.Dev), 10))
	if !ok || !ok2 {
		return unix.EINVAL
	}
	_, err = g.line(unum.NodeID(home), &d, false)
	return err
}

// EndSession hangs up all terminals of a home session. Its agent is about to
// end, or has.
func (g *Guests) EndSession(home unum.NodeID, sid unum.Pid) {
	g.mu.Lock()
	var ls []*Line
	for k, l := range g.lines {
		if k.home == home && k.sid == sid {
			ls = append(ls, l)
		}
	}
	for k := range g.elsewhere {
		if k.sid == sid {
			delete(g.elsewhere, k)
		}
	}
	g.mu.Unlock()
	for _, l := range ls {
		l.hangUp()
	}
}

// line finds or makes. A terminal that went through other nodes and came back
// is found under the name it first came by, but only by its own session: the
// half at home of another one's ends with that one's last process.
func (g *Guests) line(home unum.NodeID, d *Desc, known bool) (*Line, error) {
	key := lineKey{home, d.Sid, d.Dev}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, os.ErrClosed
	}
	if l := g.lines[key]; l != nil {
		return l, nil
	}
	for _, l := range g.lines {
		if known && l.key.home != home && l.key.sid == d.Sid && l.root == d.Root && d.Root.Node != home {
			g.elsewhere[key] = true
			g.news()
			return l, nil
		}
	}
	l, err := newLine(g, key, d)
	if err != nil {
		return nil, err
	}
	g.lines[key] = l
	delete(g.elsewhere, key)
	g.news()
	g.k.go_(l.read)
	g.k.go_(l.watch)
	return l, nil
}

// news wakes whoever waits for a line. Preconditions: mu is held.
func (g *Guests) news() {
	close(g.made)
	g.made = make(chan struct{})
}

func (g *Guests) close() error {
	g.mu.Lock()
	g.closed = true
	var ls []*Line
	for _, l := range g.lines {
		ls = append(ls, l)
	}
	g.mu.Unlock()
	for _, l := range ls {
		l.end(g.k.cfg.Keeper == nil)
	}
	return nil
}

// Land makes a slave descriptor for a body.
func (k *Kind) Land(ctx context.Context, pl carry.Placement, cd *carry.Desc) (carry.Guest, error) {
	d, err := decodeDesc(cd.Data)
	if err != nil {
		return nil, wrap("carry", "", pl.Pid, "terminal", err)
	}
	e, err := k.Guests.Session(ctx, pl, d)
	if err != nil {
		return nil, err
	}
	flags := cd.Flags & (unix.O_ACCMODE | unix.O_NONBLOCK | unix.O_APPEND)
	if e.file, err = e.l.open(flags); err != nil {
		e.Close()
		return nil, wrap("carry", "", pl.Pid, "terminal", err)
	}
	return e, nil
}

// ResumeGuest finds the terminal of a body that has its descriptor.
func (k *Kind) ResumeGuest(ctx context.Context, pl carry.Placement, cd *carry.Desc) (carry.Guest, error) {
	d, err := decodeDesc(cd.Data)
	if err != nil {
		return nil, wrap("carry", "", pl.Pid, "terminal", err)
	}
	e, err := k.Guests.ResumeSession(ctx, pl, d)
	if err != nil {
		return nil, err
	}
	return e, nil
}

// End is one placement's share of a terminal at the guest.
type End struct {
	l    *Line
	pl   carry.Placement
	file *os.File
	fg   bool
	once sync.Once
}

var _ carry.Guest = (*End)(nil)

// Slave opens the terminal for the session's agent, which makes it its
// controlling terminal. The caller closes it.
func (e *End) Slave() (*os.File, error) {
	f, err := e.l.open(unix.O_RDWR)
	return f, wrap("carry", "", e.pl.Pid, "terminal", err)
}

// SetAgent names the session's agent, once it has its controlling terminal and
// before a body runs.
func (e *End) SetAgent(a Agent) {
	pgrp := 0
	e.l.control(func(fd int) { pgrp, _ = sys.TtyForeground(fd) })
	e.l.mu.Lock()
	defer e.l.mu.Unlock()
	e.l.agent = a
	if e.l.nobody == 0 {
		e.l.nobody = pgrp
		e.l.page.set(wordNobody, uint64(pgrp))
	}
}

// HasAgent says whether a SetAgent came before.
func (e *End) HasAgent() bool {
	e.l.mu.Lock()
	defer e.l.mu.Unlock()
	return e.l.agent != nil
}

// GroupReady is to be called when the body's process group exists at the guest
// and before the body runs: a group that is in the foreground at home becomes
// so here.
func (e *End) GroupReady(ctx context.Context) error {
	if !e.fg {
		return nil
	}
	return wrap("carry", "", e.pl.Pid, "foreground group", e.l.setForeground(ctx, e.pl.Pgid))
}

// Local is the slave.
func (e *End) Local() carry.Local { return carry.Local{File: e.file} }

// Started says that the body runs. If it leads its group, the group did not
// exist when GroupReady was called.
func (e *End) Started(ok bool) {
	if ok && e.l.confirm() {
		e.l.press(e.l.takeLate()...)
	}
}

// Flush returns when home's terminal has all output, and all input that was not
// read is back in home's queue.
func (e *End) Flush(ctx context.Context, _ bool) error {
	return wrap("flush", e.pl.Home, e.pl.Pid, "terminal", e.l.flush(ctx, e))
}

// Close releases it.
func (e *End) Close() error {
	e.once.Do(func() { e.l.detach(e) })
	return nil
}
