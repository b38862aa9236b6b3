// Package tty carries terminals between nodes.
//
// The line discipline that people type at stays at home, once: echo, erasing,
// ^C, ^Z, ^S and ^D are home's. The guest has one pty per home session and
// terminal, a Line. It has home's modes plus EXTPROC, so that it touches no
// input; its slave is what bodies have open, and the controlling terminal of
// the guest's agent of that session, so that isatty, /dev/tty, SIGTTIN, tostop
// and foreground groups are the guest kernel's own.
//
// Between the two halves goes one channel of service "carry.tty", opened by
// home, that carries numbered messages and so survives a lost connection:
//
//	home → guest   offer of input, input, modes, size, foreground group, signal, hang-up
//	guest → home   output, wish for input, modes, size, unread input, flush
//
// Input moves on demand only: what a body has not asked for stays in home's
// queue, where the next reader at home finds it. When a line is waiting at
// home and a body's group is in the foreground, home offers it; the guest then
// looks for a task of its foreground group that is blocked reading or polling
// the terminal, and asks. A body that has set a raw mode itself is taken to
// want every key. What was moved but not read when a body stops or ends goes
// back into home's queue, in front of the rest.
//
// Output has a window of 8 KiB that home has not yet written to its terminal.
//
// Terminals that are not anybody's controlling terminal (after setsid, say)
// have a Line as well, only without foreground groups.
//
// A daemon may be killed on either side: the guest's pty is kept (carry.Keeper),
// and both halves note on a mapped page how far output has come (page). What
// home had read and not yet sent is lost with it.
//
// Locks: Line.fgMu, Homes.mu, Homes.pressMu, home.telling, home.mu, Guests.mu, Line.io, Line.mu
// and link.mu, in this order. home.take comes before home.telling. Line.io is
// never held over what waits, and no lock but Line.fgMu over a call to an Agent.
package tty

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"unum"
	"unum/carry"
)

// Service is the channel's name.
const Service = "carry.tty"

// window is how much output may be on its way, unwritten at home.
const window = 8 << 10

// Config is what a Kind needs beyond carry.Env.
type Config struct {
	carry.Env
	// Devpts is where the daemon finds the world's devpts, such as
	// /proc/PID/root/dev/pts of a process of the world.
	Devpts func() (string, error)
}

// Kind is the carry.Kind of terminals, both halves.
type Kind struct {
	Homes  *Homes
	Guests *Guests

	cfg    Config
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

var _ carry.Kind = (*Kind)(nil)

// New makes the kind and registers its service.
func New(cfg Config) (*Kind, error) {
	if cfg.Devpts == nil {
		cfg.Devpts = func() (string, error) { return "/dev/pts", nil }
	}
	k := &Kind{cfg: cfg, log: cfg.Log}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	k.Homes = &Homes{k: k, homes: map[homeKey]*home{}, presses: map[press]*keypress{}}
	k.Guests = &Guests{k: k, lines: map[lineKey]*Line{}, elsewhere: map[lineKey]bool{}, made: make(chan struct{})}
	k.Guests.resume()
	k.Homes.resume()
	cfg.Accept(Service, k.Guests.accept)
	return k, nil
}

// Name is "tty".
func (k *Kind) Name() string { return "tty" }

// Close ends all lines and waits for their goroutines. Bodies that still have
// a terminal of ours see a hang-up.
func (k *Kind) Close() error {
	k.cancel()
	err := errors.Join(k.Homes.close(), k.Guests.close())
	k.wg.Wait()
	return err
}

func (k *Kind) go_(fn func()) {
	k.wg.Add(1)
	go func() {
		defer k.wg.Done()
		fn()
	}()
}

// Claim describes descriptors of terminals. The master of a pseudo-terminal is
// one that cannot be carried.
func (k *Kind) Claim(_ context.Context, p *carry.Proc, fd *carry.FD) (*carry.Desc, error) {
	d, err := k.describeFD(p, fd)
	if d == nil || err != nil {
		return nil, wrap("carry", unum.NodeID(""), p.Pid, fd.Link, err)
	}
	b, err := d.encode()
	return &carry.Desc{Data: b}, err
}

func wrap(op string, node unum.NodeID, pid unum.Pid, path string, err error) error {
	if err == nil {
		return nil
	}
	return &unum.Error{Op: op, Node: node, Pid: pid, Path: path, Err: err}
}
