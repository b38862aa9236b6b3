package ctl

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"unum"
)

// Stdio is the client's side of a command's descriptors 0, 1 and 2.
type Stdio struct{ In, Out, Err *os.File }

// Terminals says whether the command needs a terminal of the world: input and
// output are terminals here.
func (s Stdio) Terminals() bool { return isTerminal(s.In) && isTerminal(s.Out) }

// reconnectFor is how long a client that lost the daemon waits for the next one:
// the lease after which its command would be killed, and some.
const reconnectFor = 15 * time.Second

// forwarded are the signals that reach the command instead of the client.
var forwarded = []os.Signal{
	unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGTSTP, unix.SIGCONT,
	unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH,
}

// Detach starts a command without anybody to wait for it.
func (cl *Client) Detach(ctx context.Context, req *RunRequest) (unum.Pid, error) {
	r := *req
	r.Detach, r.TTY = true, false
	c, st, err := cl.start(ctx, &r, nil)
	if err != nil {
		return 0, err
	}
	c.Close()
	return st.pid, nil
}

// begun is a command that has started.
type begun struct {
	pid    unum.Pid
	master *os.File // of its terminal, or nil
}

// start asks for a command, of one daemon after the other if they die over it:
// the next one finds what was started, or starts it. The connection is the one
// on which its end will be told. On failure the command was not started.
func (cl *Client) start(ctx context.Context, req *RunRequest, files []*os.File) (c *conn, b begun, err error) {
	req.ID = rand.Text()
	defer func() {
		if err != nil && b.master != nil {
			b.master.Close()
			b.master = nil
		}
	}()
	next := &Client{Path: cl.Path, Patience: reconnectFor}
	for until := time.Now().Add(reconnectFor); ; cl = next {
		if c, err = cl.ask(ctx, "run", req, files...); err == nil {
			giveUp := context.AfterFunc(ctx, func() { c.Close() })
			err = b.recv(c)
			if !giveUp() && err != nil {
				err = context.Cause(ctx)
			}
			if err == nil {
				return c, b, nil
			}
			c.Close()
		}
		if lost(err) != errLost || time.Now().After(until) {
			return nil, b, err
		}
	}
}

// recv receives until the command has started. A terminal that comes replaces
// one of an attempt before, whose command was not started.
func (b *begun) recv(c *conn) error {
	for {
		m, files, err := c.recvAnswer()
		if err != nil {
			return lost(err)
		}
		switch m.Op {
		case opTerminal:
			if len(files) != 1 {
				return errors.New("the daemon sent no terminal")
			}
			if b.master != nil {
				b.master.Close()
			}
			b.master = files[0]
		case opStarted:
			var st started
			err := msgpack.Unmarshal(m.Body, &st)
			b.pid = st.Pid
			return err
		default:
			return fmt.Errorf("unexpected answer %q", m.Op)
		}
	}
}

// Run starts a command with io, stands for it here until it ends, and returns
// how it ended: signals that this process gets are passed on, and if io is a
// terminal, it is in raw mode meanwhile. ctx ending hangs the command up: it
// gets SIGHUP, and SIGKILL when it has not ended within two seconds; two more
// seconds, and Run returns without it.
//
// An error that comes with a zero Exit means that the command did not start,
// or that how it ended cannot be known any more.
func (cl *Client) Run(ctx context.Context, req *RunRequest, io Stdio) (Exit, error) {
	r := *req
	r.Detach = false
	r.TTY = io.Terminals()
	var term *terminal
	var files []*os.File
	if r.TTY {
		var err error
		if term, err = openTerminal(io); err != nil {
			return Exit{}, err
		}
		defer term.restore()
		r.Termios, r.Rows, r.Cols = term.describe()
	} else {
		files = []*os.File{io.In, io.Out, io.Err}
	}

	// From here on a signal is the command's, also while it is being started.
	sigs := make(chan os.Signal, 32)
	for _, s := range forwarded {
		if !signal.Ignored(s) { // as under nohup
			signal.Notify(sigs, s)
		}
	}
	defer signal.Stop(sigs)

	c, b, err := cl.start(ctx, &r, files)
	if err != nil {
		return Exit{}, err
	}
	f := &following{cl: cl, c: c, pid: b.pid, term: term, sigs: sigs}
	defer func() { f.c.Close() }()
	if r.TTY {
		if b.master == nil {
			return Exit{}, errors.New("the daemon sent no terminal")
		}
		if err := term.start(b.master); err != nil {
			return Exit{}, err
		}
	}
	exit, err := f.follow(ctx)
	if term != nil {
		term.finish()
	}
	return exit, err
}

// following is a command that runs, as its client sees it.
type following struct {
	cl   *Client
	c    *conn
	pid  unum.Pid
	term *terminal // or nil
	sigs chan os.Signal
}

type ending struct {
	exit Exit
	err  error
}

// await receives the end on c.
func await(c *conn) ending {
	m, _, err := c.recvAnswer()
	if err != nil {
		return ending{err: lost(err)}
	}
	if m.Op != opExit {
		return ending{err: fmt.Errorf("unexpected answer %q", m.Op)}
	}
	var e ending
	e.err = msgpack.Unmarshal(m.Body, &e.exit)
	return e
}

func (f *following) follow(ctx context.Context) (Exit, error) {
	ends := make(chan ending, 1)
	wait := func() {
		c := f.c
		go func() { ends <- await(c) }() // ends when c is closed, at the latest
	}
	wait()
	cancelled := ctx.Done()
	var kill, leave <-chan time.Time
	for {
		select {
		case e := <-ends:
			if !errors.Is(e.err, errLost) {
				return e.exit, e.err
			}
			if err := f.reconnect(); err != nil {
				return Exit{}, err
			}
			wait()
		case s := <-f.sigs:
			f.signal(s.(unix.Signal))
		case <-cancelled:
			cancelled = nil
			f.send(unix.SIGHUP)
			f.send(unix.SIGCONT)
			kill = time.After(2 * time.Second)
		case <-kill:
			f.send(unix.SIGKILL)
			leave = time.After(2 * time.Second)
		case <-leave:
			return Exit{}, fmt.Errorf("%d does not end: %w", f.pid, context.Cause(ctx))
		}
	}
}

// reconnect asks the daemon's successor to wait for the same command.
func (f *following) reconnect() error {
	f.c.Close()
	cl := &Client{Path: f.cl.Path, Patience: reconnectFor}
	for until := time.Now().Add(reconnectFor); ; {
		c, err := cl.ask(context.Background(), "wait", pidRequest{Pid: f.pid})
		if err == nil {
			f.c = c
			return nil
		}
		// A successor may die too, over this very question.
		if lost(err) != errLost || time.Now().After(until) {
			return fmt.Errorf("lost sight of %d: %w", f.pid, err)
		}
	}
}

// send passes a signal on. If there is no daemon it is lost, as is one sent to
// a process that has just ended.
func (f *following) send(s unix.Signal) {
	f.c.send(&message{Op: opSignal}, signalEvent{int(s)})
}

func (f *following) signal(s unix.Signal) {
	switch {
	case s == unix.SIGWINCH && f.term != nil:
		f.term.resize()
	case s == unix.SIGTSTP && f.term != nil:
		// The command has a terminal of its own; only this process is to stop.
		f.term.restore()
		unix.Kill(unix.Getpid(), unix.SIGSTOP)
		f.term.raw()
	case s == unix.SIGTSTP:
		f.send(s)
		unix.Kill(unix.Getpid(), unix.SIGSTOP)
	case s == unix.SIGCONT && f.term != nil:
		f.term.raw()
		f.term.resize()
	default:
		f.send(s)
	}
}
