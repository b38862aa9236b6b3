package tty

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
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
// may be found under the name it first came by.
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
		if known && l.root == d.Root && d.Root.Node != home {
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

// Line is one home terminal's pty at the guest.
type Line struct {
	g      *Guests
	k      *Kind
	key    lineKey
	ctty   bool
	root   Root
	devpts uint64 // device number of its file system
	number int
	ctx    context.Context
	cancel context.CancelFunc
	link   link

	reader int // process that waited for input last; watch's own

	fgMu sync.Mutex // held while the agent sets the foreground group

	// io is held while the master is read or closed.
	io      sync.Mutex
	used    bool     // somebody had it open
	master  *os.File // nil after a hang-up
	pending *Modes   // to be told once the output before them is
	verbat  int      // that much of it at most; see control
	cr      bool     // an unsent \r that may belong to a newline

	mu       sync.Mutex
	page     *page
	resumed  bool     // a predecessor's, and home does not know yet
	slave    *os.File // our own, while ends is not empty
	ends     map[*End]struct{}
	agent    Agent
	nobody   int   // the agent's own group, as this daemon numbers it
	modes    Modes // as agreed with home
	size     Size
	raw      bool     // the modes are not canonical, and a body made them so
	fg       unum.Pid // what home says
	unsure   bool     // something was told that home has not confirmed
	sent     int64    // output, and what home has written of it
	written  int64
	offered  bool
	want     int64
	late     []unix.Signal // keys for a foreground group that does not exist yet
	eager    int           // looks for a reader without an offer that are left
	release  int64
	flushID  int64
	flushes  map[int64]chan struct{}
	relays   map[*home]int64 // homes that have this terminal on to other nodes, and what they want
	ackc     chan struct{}   // closed and replaced when written grows
	watchc   chan struct{}
	life     uint64
	id       uint64
	ch       unum.Channel
	attended chan struct{} // closed when accept has left
}

func newLine(g *Guests, key lineKey, d *Desc) (*Line, error) {
	l := &Line{
		g: g, k: g.k, key: key, ctty: d.Ctty, root: d.Root, relays: map[*home]int64{},
		ends: map[*End]struct{}{}, flushes: map[int64]chan struct{}{},
		ackc: make(chan struct{}), watchc: make(chan struct{}, 1),
	}
	l.ctx, l.cancel = context.WithCancel(g.k.ctx)
	m, err := l.kept()
	if err == nil && m == nil {
		m, err = l.fresh(d)
	}
	if err != nil {
		return nil, err
	}
	l.master = m
	var st unix.Stat_t
	if err = unix.Fstat(rawFD(m), &st); err == nil {
		l.devpts = uint64(st.Dev)
		l.number, err = unix.IoctlGetInt(rawFD(m), unix.TIOCGPTN)
	}
	if err != nil {
		m.Close()
		return nil, err
	}
	return l, nil
}

func (l *Line) name() string {
	return "tty." + string(l.key.home) + "." + l.key.sid.String() + "." + strconv.FormatUint(uint64(l.key.dev), 10)
}

// kept finds the pty and what was known of it when a predecessor died; nil if
// there was none.
func (l *Line) kept() (*os.File, error) {
	if l.k.cfg.Keeper == nil {
		return nil, nil
	}
	m, err := l.k.cfg.Keeper.Take(l.name())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p, found, err := openPage(l.k.cfg.StateDir, l.name(), ringSize)
	if err != nil {
		m.Close()
		return nil, err
	}
	l.page = p
	if !found { // killed between the two
		m.Close()
		return nil, l.k.cfg.Keeper.Drop(l.ctx, l.name())
	}
	l.resumed, l.used = true, true
	l.life, l.fg, l.nobody = p.get(wordLife), unum.Pid(p.get(wordFg)), int(p.get(wordNobody))
	l.id = p.get(wordLine)
	l.sent, l.written = int64(p.get(wordSent)), int64(p.get(wordWritten))
	l.link.got = p.get(wordGot)
	l.link.done = l.link.got
	l.modes, err = p.modes()
	if w, werr := sys.TtySize(rawFD(m)); err == nil && werr == nil {
		l.size = sizeOf(w)
	}
	if err != nil {
		m.Close()
		return nil, err
	}
	// What home may not have, under new numbers; home knows the positions.
	for _, m := range l.unwritten() {
		l.link.send(l.ctx, m)
	}
	// A wish may be open that is forgotten here.
	l.link.send(l.ctx, message{Op: opWant, N: wantNothing})
	return m, nil
}

// fresh makes the pty.
func (l *Line) fresh(d *Desc) (*os.File, error) {
	dir, err := l.k.cfg.Devpts()
	if err != nil {
		return nil, err
	}
	m, err := openNumber(dir, int(unix.Minor(uint64(d.Dev))))
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*os.File, error) {
		m.Close()
		return nil, err
	}
	stateDir := l.k.cfg.StateDir
	if l.k.cfg.Keeper == nil {
		stateDir = ""
	}
	if l.page, _, err = openPage(stateDir, l.name(), ringSize); err != nil {
		return fail(err)
	}
	clear(l.page.b[8:])
	l.id = rand.Uint64() | 1
	l.page.set(wordLine, l.id)
	l.page.setDesc(d)
	if err := l.adopt(rawFD(m), d); err != nil {
		return fail(err)
	}
	// From now on no body can clear it.
	if err := sys.LockTtyAttr(rawFD(m), &unix.Termios{Lflag: sys.EXTPROC}); err != nil {
		return fail(err)
	}
	if l.k.cfg.Keeper != nil {
		if err := l.k.cfg.Keeper.Keep(l.ctx, l.name(), m); err != nil {
			return fail(err)
		}
	}
	return m, nil
}

// openNumber prefers a pty of the same number as home's, so that ttyname agrees
// where it can.
func openNumber(dir string, want int) (*os.File, error) {
	m, n, err := sys.OpenPty(dir)
	if err != nil || n >= want || want-n > 16 {
		return m, err
	}
	var spare []*os.File
	defer func() {
		for _, f := range spare {
			f.Close()
		}
	}()
	for n < want {
		o, on, err := sys.OpenPty(dir)
		if err != nil || on > want {
			if err == nil {
				o.Close()
			}
			break
		}
		spare = append(spare, m)
		m, n = o, on
	}
	return m, nil
}

// adopt gives the pty home's modes and size.
func (l *Line) adopt(fd int, d *Desc) error {
	l.modes, l.size, l.raw = d.Modes, d.Size, false
	if err := sys.SetTtyAttr(fd, d.Modes.termios(sys.EXTPROC)); err != nil {
		return err
	}
	if t, err := sys.TtyAttr(fd); err == nil {
		l.modes = modesOf(t)
	}
	l.page.setModes(&l.modes)
	return sys.SetTtySize(fd, d.Size.winsize())
}

func (l *Line) open(flags int) (f *os.File, err error) {
	l.io.Lock()
	defer l.io.Unlock()
	if l.master == nil {
		return nil, unix.EIO
	}
	l.used = true
	return sys.OpenSlave(rawFD(l.master), flags)
}

func (l *Line) attach(pl carry.Placement, d *Desc, resume bool) (*End, error) {
	l.io.Lock()
	defer l.io.Unlock()
	if l.master == nil {
		return nil, unix.EIO
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.slave == nil {
		s, err := sys.OpenSlave(rawFD(l.master), unix.O_RDWR|unix.O_NONBLOCK)
		if err != nil {
			return nil, err
		}
		l.slave, l.used = s, true
		if resume {
			poke(l.watchc)
		} else if err := l.adopt(rawFD(l.master), d); err != nil {
			return nil, err
		}
	}
	l.release = 0
	e := &End{l: l, pl: pl, fg: d.Fg && d.Ctty}
	l.ends[e] = struct{}{}
	return e, nil
}

func (l *Line) detach(e *End) {
	l.mu.Lock()
	delete(l.ends, e)
	if len(l.ends) == 0 && l.slave != nil {
		l.slave.Close()
		l.slave = nil
		l.raw, l.eager = false, 0
		if l.want > 0 {
			l.tell(wantNothing)
		}
	}
	l.mu.Unlock()
	l.checkIdle()
}

// setForeground asks the agent. A group that has no member here is not in the
// foreground here.
func (l *Line) setForeground(ctx context.Context, pgid unum.Pid) error {
	l.fgMu.Lock()
	defer l.fgMu.Unlock()
	l.mu.Lock()
	a := l.agent
	l.fg = pgid
	l.page.set(wordFg, uint64(pgid))
	l.mu.Unlock()
	if a == nil {
		return nil
	}
	err := a.SetForeground(ctx, pgid)
	if err != nil && pgid != 0 {
		err = a.SetForeground(ctx, 0)
	}
	l.wish()
	for _, h := range l.relayed() {
		h.sync(ctx)
		h.kick()
	}
	return err
}

// confirm sets the foreground group again, if the agent's own is there because
// home's did not exist. It says whether home's is there now, or none is to be.
func (l *Line) confirm() bool {
	l.mu.Lock()
	fg, nobody := l.fg, l.nobody
	l.mu.Unlock()
	missing := func() bool {
		now := 0
		l.control(func(fd int) { now, _ = sys.TtyForeground(fd) })
		return fg != 0 && now != 0 && now == nobody
	}
	if !missing() {
		return true
	}
	ctx, cancel := context.WithTimeout(l.ctx, agentTime)
	defer cancel()
	if err := l.setForeground(ctx, fg); err != nil {
		l.k.log.Warn("cannot set a foreground group", "pgid", fg, "err", err)
	}
	return !missing()
}

// hangUp closes the pty for good: its readers get an end of file, writers EIO,
// and the session's leader SIGHUP.
func (l *Line) hangUp() { l.end(true) }

// end closes this daemon's half; the pty too, unless a successor is to have it.
func (l *Line) end(forget bool) {
	l.g.mu.Lock()
	if l.g.lines[l.key] == l {
		delete(l.g.lines, l.key)
	}
	l.g.mu.Unlock()
	l.mu.Lock()
	if l.slave != nil {
		l.slave.Close()
		l.slave = nil
	}
	l.mu.Unlock()
	l.link.close()
	l.cancel()
	l.io.Lock()
	defer l.io.Unlock()
	if l.master == nil {
		return
	}
	if forget && l.k.cfg.Keeper != nil {
		if err := l.k.cfg.Keeper.Drop(context.Background(), l.name()); err != nil {
			l.k.log.Warn("drop a terminal", "name", l.name(), "err", err)
		}
	}
	l.master.Close()
	l.master = nil
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.page.close(forget); err != nil {
		l.k.log.Warn("close a terminal's page", "name", l.name(), "err", err)
	}
}

// checkIdle tells home, if it has asked, that nobody has the terminal open.
func (l *Line) checkIdle() {
	l.io.Lock()
	idle := l.master == nil
	if !idle {
		re, err := sys.PollFD(rawFD(l.master), unix.POLLIN)
		idle = err == nil && (re&unix.POLLHUP != 0 || !l.used) && re&unix.POLLIN == 0
	}
	l.io.Unlock()
	l.mu.Lock()
	id := l.release
	if len(l.ends) > 0 || !idle || l.sent != l.written {
		id = 0
	}
	if id != 0 {
		l.release = 0
	}
	l.mu.Unlock()
	if id != 0 {
		l.link.send(l.k.ctx, message{Op: opIdle, N: id})
	}
}
