package tty

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
	"unum/sys"
)

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
