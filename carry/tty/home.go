package tty

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
	"unum/sys"
)

// Homes are the terminals of this node's sessions that bodies elsewhere use.
type Homes struct {
	k *Kind

	mu     sync.Mutex
	closed bool
	homes  map[homeKey]*home
	old    map[string]bool // pages of a daemon before this one, by path, that nobody has asked for

	pressMu sync.Mutex // comes before home.mu
	presses map[press]*keypress
}

type homeKey struct {
	sid   unum.Pid
	dev   uint32
	guest unum.NodeID
}

// Describe returns the controlling terminal of the caller's session for the
// start request, nil if it has none. A descriptor of the terminal need not
// exist. It has no side effect.
func (hs *Homes) Describe(p *carry.Proc) (*Desc, error) {
	j, err := sys.ReadJob(p.HostPid, nil)
	if err != nil {
		return nil, wrap("carry", "", p.Pid, "terminal", err)
	}
	if j.TTY == 0 {
		return nil, nil
	}
	d := &Desc{Dev: j.TTY}
	if err := d.job(p); err != nil {
		return nil, wrap("carry", "", p.Pid, "terminal", err)
	}
	hs.mu.Lock()
	for key, h := range hs.homes {
		if key.sid == d.Sid && key.dev == d.Dev && h.describe(d) {
			hs.mu.Unlock()
			d.Root = h.desc.Root
			return d, nil
		}
	}
	hs.mu.Unlock()
	f, err := hs.k.openPrivate(d.Dev, p.HostPid, nil)
	if err == nil {
		defer f.Close()
		err = d.read(rawFD(f))
	}
	hs.k.trace(d, p)
	if errors.Is(err, unix.EIO) { // hung up: as good as none
		return nil, nil
	}
	if err != nil {
		return nil, wrap("carry", "", p.Pid, "controlling terminal", errors.Join(unum.ErrStaysHome, err))
	}
	return d, nil
}

// homePage is how the pages of home's halves are named.
const homePage = "ttyhome."

// resume finds the pages that a predecessor had. One that no placement asks for
// is kept for as long as an unused half is.
func (hs *Homes) resume() {
	if hs.k.cfg.StateDir == "" {
		return
	}
	files, err := filepath.Glob(filepath.Join(hs.k.cfg.StateDir, homePage+"*"))
	if err != nil || len(files) == 0 {
		return
	}
	hs.old = map[string]bool{}
	for _, f := range files {
		hs.old[f] = true
	}
	hs.k.go_(func() {
		select {
		case <-time.After(lingerTime):
			hs.forget()
		case <-hs.k.ctx.Done():
		}
	})
}

func (hs *Homes) forget() {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	for f := range hs.old {
		if err := os.Remove(f); err != nil {
			hs.k.log.Warn("forget a terminal's page", "err", err)
		}
	}
	hs.old = nil
}

// Attach opens home's half of a session's terminal for one placement, also
// where no descriptor refers to it. file is a descriptor of it or nil; it is
// not kept.
func (hs *Homes) Attach(ctx context.Context, pl carry.Placement, d *Desc, file *os.File) (*HomeEnd, error) {
	e, open, err := hs.attach(pl, d, file)
	if err != nil {
		return nil, wrap("carry", pl.Guest, pl.Pid, "terminal", err)
	}
	if open {
		e.h.catchUp(ctx)
	}
	return e, nil
}

// attach is Attach without what the guest has to know first; open says that
// others at the guest have the terminal already.
func (hs *Homes) attach(pl carry.Placement, d *Desc, file *os.File) (e *HomeEnd, open bool, err error) {
	key := homeKey{d.Sid, d.Dev, pl.Guest}
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if hs.closed {
		return nil, false, os.ErrClosed
	}
	h := hs.homes[key]
	if h == nil || h.dead() {
		h = newHome(hs, key, d)
		hs.homes[key] = h
		hs.k.go_(h.run)
		hs.k.go_(h.write)
	}
	return h.attach(pl, d, file)
}

// Serve is Attach for a descriptor.
func (k *Kind) Serve(ctx context.Context, pl carry.Placement, cd *carry.Desc, file *os.File) (carry.Home, error) {
	d, err := decodeDesc(cd.Data)
	if err != nil {
		return nil, wrap("carry", pl.Guest, pl.Pid, "terminal", err)
	}
	e, err := k.Homes.Attach(ctx, pl, d, file)
	if err != nil {
		return nil, err
	}
	e.file = file
	return e, nil
}

// ForegroundChanged is to be called when a process of the session has changed
// the foreground group of its terminal. What the group is now is read from the
// kernel; the guests are told.
func (hs *Homes) ForegroundChanged(ctx context.Context, sid unum.Pid) {
	for _, h := range hs.of(func(k homeKey) bool { return k.sid == sid }) {
		h.sync(ctx)
		h.kick()
	}
}

// Sync returns when the guest's terminal has what home's has: foreground group,
// modes and size, and the signals of keys. It is to be called before a SIGCONT
// is passed on to a body, which a late SIGTSTP would stop again.
func (hs *Homes) Sync(ctx context.Context, pl carry.Placement) error {
	for _, h := range hs.of(func(k homeKey) bool { return k.sid == pl.Sid && k.guest == pl.Guest }) {
		h.sync(ctx)
		h.mu.Lock()
		dirty := h.dirty
		h.dirty = false
		h.mu.Unlock()
		if !dirty {
			continue
		}
		if err := h.syncWait(ctx); err != nil {
			return wrap("carry", pl.Guest, pl.Pid, "terminal", err)
		}
	}
	return nil
}

// Foreground says whether the placement's group is in the foreground of its
// terminal at home. A body that stopped by SIGTTIN or SIGTTOU although it is
// was told too late: it is to be continued after Sync, and its deputy not
// stopped.
func (hs *Homes) Foreground(pl carry.Placement) bool {
	for _, h := range hs.of(func(k homeKey) bool { return k.sid == pl.Sid && k.guest == pl.Guest }) {
		if h.foregroundOf(pl.ID) {
			h.mu.Lock()
			h.dirty = true
			h.mu.Unlock()
			return true
		}
	}
	return false
}

// Close ends all of them.
func (hs *Homes) close() error {
	hs.mu.Lock()
	hs.closed = true
	hs.mu.Unlock()
	for _, h := range hs.of(func(homeKey) bool { return true }) {
		h.end()
	}
	return nil
}

func (hs *Homes) of(ok func(homeKey) bool) (out []*home) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	for k, h := range hs.homes {
		if ok(k) {
			out = append(out, h)
		}
	}
	return out
}

// home is one terminal's half towards one guest.
//
//	closed ── attach ──▶ open ── last end closed, guest says idle ──▶ closed
//	open ── terminal hangs up ──▶ hung;  any ── end ──▶ dead
type home struct {
	hs     *Homes
	k      *Kind
	key    homeKey
	desc   *Desc
	life   uint64
	ctx    context.Context
	cancel context.CancelFunc
	link   link

	take    sync.Mutex // held while input is taken from the terminal, or put back
	telling sync.Mutex // held while the terminal's state is compared and told

	mu      sync.Mutex
	tty     *os.File // our own description; nil while nobody at the guest uses it
	rc      syscall.RawConn
	up      *Line // the terminal is itself one of this node's guests', or nil
	ends    map[*HomeEnd]struct{}
	live    bool // a body runs, or did since tty was opened
	hung    bool
	over    bool
	modes   Modes // as agreed with the guest
	size    Size
	fg      unum.Pid
	dirty   bool  // the guest was told something since the last Sync
	shapes  int64 // how often it was told modes or a size
	shaped  int64 // how many of these it has, for sure
	want    int64
	offered bool
	passed  bool // the offer of the node that we have the terminal from
	release int64
	linger  *time.Timer
	queue   []message // for write
	syncs   map[int64]chan struct{}
	syncID  int64

	writec   chan struct{}
	kickc    chan struct{}
	received int64 // position in the stream of output; -1 until the first
	written  int64 // write's own, once received is known
	line     uint64
	page     *page
}

func newHome(hs *Homes, key homeKey, d *Desc) *home {
	h := &home{
		hs: hs, k: hs.k, key: key, desc: d, life: rand.Uint64(),
		ends: map[*HomeEnd]struct{}{}, syncs: map[int64]chan struct{}{},
		writec: make(chan struct{}, 1), kickc: make(chan struct{}, 1),
	}
	h.ctx, h.cancel = context.WithCancel(hs.k.ctx)
	h.received = -1
	name := homePage + string(key.guest) + "." + key.sid.String() + "." + strconv.FormatUint(uint64(key.dev), 10)
	p, found, err := openPage(hs.k.cfg.StateDir, name, 0)
	if err != nil {
		hs.k.log.Warn("a terminal's page", "err", err)
		p = &page{}
	} else if found {
		h.received = int64(p.get(wordWritten))
		h.written = h.received
	}
	h.page = p
	delete(hs.old, p.path)
	return h
}

// describe fills in modes and size from the open terminal.
func (h *home) describe(d *Desc) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	ok := false
	if h.tty != nil && !h.hung {
		_ = h.rc.Control(func(fd uintptr) { ok = d.read(int(fd)) == nil })
	}
	return ok
}

func (h *home) dead() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.over || h.hung
}

func (h *home) attach(pl carry.Placement, d *Desc, file *os.File) (e *HomeEnd, open bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	open = h.tty != nil && h.live
	if h.tty == nil {
		f, err := h.k.openPrivate(d.Dev, d.HostPid, file)
		if err != nil {
			return nil, false, err
		}
		rc, err := f.SyscallConn()
		if err != nil {
			f.Close()
			return nil, false, err
		}
		h.tty, h.rc, h.live, h.offered = f, rc, false, false
		h.up = h.k.Guests.lineOf(f, d.Dev)
		h.up.relay(h)
		// The guest takes these from the start request.
		h.modes, h.size = d.Modes, d.Size
		h.k.go_(func() { h.read(f, rc) })
	}
	if h.linger != nil {
		h.linger.Stop()
		h.linger = nil
	}
	h.release++ // an answer to an older question no longer counts
	e = &HomeEnd{h: h, pl: pl, hostPid: d.HostPid, ctty: d.Ctty}
	h.ends[e] = struct{}{}
	if d.Fg && h.fg != pl.Pgid {
		// The start request says so too, but it may overtake what the link
		// carries of an earlier change.
		h.fg = pl.Pgid
		h.link.send(h.ctx, message{Op: opFg, N: int64(pl.Pgid)})
	}
	return e, open, nil
}

// Preconditions: mu is held.
func (h *home) queued(ops ...op) bool {
	for _, q := range h.queue {
		for _, o := range ops {
			if q.Op == o {
				return true
			}
		}
	}
	return false
}

// Preconditions: mu is held.
func (h *home) setWant(n int64) {
	h.want = n
	if n != 0 {
		h.offered, h.passed = false, false
	}
	h.up.wanted(h, n)
	h.kickLocked()
}

func (h *home) kick() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.kickLocked()
}

// kickLocked makes read look again. Preconditions: mu is held.
func (h *home) kickLocked() {
	poke(h.kickc)
	if h.tty != nil {
		_ = h.tty.SetReadDeadline(time.Unix(1, 0))
	}
}

// passOffer tells the guest that the node we have the terminal from has input,
// or none any more. While the guest wants some it need not know; read tells it
// afterwards.
func (h *home) passOffer(on bool) {
	h.mu.Lock()
	idle := h.want == 0
	h.passed = idle && on
	h.mu.Unlock()
	if idle {
		h.link.send(h.ctx, message{Op: opOffer, N: number(on)})
	}
}

func number(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// Preconditions: mu is held.
func (h *home) closeTTY() {
	if h.tty != nil {
		// Close ends read, and waits for whoever has the descriptor in use and
		// may be waiting for mu.
		tty := h.tty
		h.k.go_(func() { tty.Close() })
		h.up.unrelay(h)
		h.tty, h.rc, h.up, h.live = nil, nil, nil, false
	}
	poke(h.kickc)
	if !h.over && h.linger == nil {
		h.linger = time.AfterFunc(lingerTime, h.end)
	}
}

// lingerTime is how long an unused link is kept for the next placement.
const lingerTime = 30 * time.Second

// end gives the half up.
func (h *home) end() {
	h.hs.mu.Lock()
	h.mu.Lock()
	h.over = true
	if h.linger != nil {
		h.linger.Stop()
	}
	if h.hs.homes[h.key] == h {
		delete(h.hs.homes, h.key)
	}
	h.closeTTY()
	h.mu.Unlock()
	h.hs.mu.Unlock()
	h.cancel()
}

// HomeEnd is one placement's share of a terminal at home.
type HomeEnd struct {
	h       *home
	pl      carry.Placement
	hostPid int
	ctty    bool
	file    *os.File
	once    sync.Once
	running bool // guarded by h.mu
}

var _ carry.Home = (*HomeEnd)(nil)

// Commit lets input and output flow.
func (e *HomeEnd) Commit() {
	e.h.mu.Lock()
	e.running, e.h.live = true, true
	poke(e.h.writec)
	e.h.kickLocked()
	offered := e.h.up.hasOffer()
	e.h.mu.Unlock()
	// What has changed since the start request was made, while nobody was there
	// to be signalled.
	e.h.k.go_(func() { e.h.sync(e.h.ctx) })
	if offered {
		e.h.passOffer(true)
	}
}

// Drain has nothing to do: the guest's Flush waits until all is written.
func (e *HomeEnd) Drain(context.Context) error { return nil }

// Close ends it. The terminal stays open for what children of the body still
// write, until they have closed it.
func (e *HomeEnd) Close() error {
	e.once.Do(func() {
		if e.file != nil {
			e.file.Close()
		}
		h := e.h
		h.mu.Lock()
		delete(h.ends, e)
		last, live := len(h.ends) == 0, h.live
		h.release++
		id := h.release
		if last && !live {
			h.closeTTY()
		}
		h.mu.Unlock()
		if last && live {
			h.link.send(h.ctx, message{Op: opRelease, N: id})
		}
	})
	return nil
}

// ResumeHome is Serve: what home's terminal has already stands in the page.
func (k *Kind) ResumeHome(ctx context.Context, pl carry.Placement, d *carry.Desc, file *os.File) (carry.Home, error) {
	h, err := k.Serve(ctx, pl, d, file)
	if err != nil {
		return nil, err
	}
	return h, nil
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
