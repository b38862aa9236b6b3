package seccomp

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Notif is one trapped call. Whoever got it answers it once, by Continue,
// Errno or Return; until then its caller sleeps and can only be killed.
// A peer's memory is hostile: what is read from the caller may change until
// the call is answered.
type Notif struct {
	ID   uint64
	Tid  int // the calling thread in the daemon's PID namespace
	Arch uint32
	Nr   uint32
	IP   uint64
	Args [6]uint64
	// Again says that a daemon before this one had received it and died.
	Again bool
	// At is when this daemon received it.
	At time.Time

	l    *Listener
	slot int
	then func()
}

// Then has f run on the receiving goroutine when the handler has returned, while
// another one receives: f may take long, and begins without a thread having to
// be woken for it. It may be called once, by the handler.
func (n *Notif) Then(f func()) { n.then = f }

// Valid says whether the caller still waits. What was read from /proc about
// Tid before a Valid that returns true was about the caller.
func (n *Notif) Valid() bool { return notifValid(n.l.fd(), n.ID) }

// Continue lets the kernel make the call.
func (n *Notif) Continue() { n.answer(0, 0, unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE) }

// Errno makes the call fail.
func (n *Notif) Errno(e unix.Errno) { n.answer(-int32(e), 0, 0) }

// Return makes the call return v.
func (n *Notif) Return(v int64) { n.answer(0, v, 0) }

// errRestartNoIntr makes the kernel issue the call again when the caller next
// looks at its signals.
const errRestartNoIntr = 513

// Restart makes the caller issue the call again, without a signal. It must have
// been interrupted by a tracer before; otherwise it would see the number above
// as its errno.
func (n *Notif) Restart() { n.answer(-errRestartNoIntr, 0, 0) }

// answer forgets the notification in any case: ENOENT says that the caller
// died.
func (n *Notif) answer(e int32, v int64, flags uint32) {
	err := notifSend(n.l.fd(), n.ID, v, e, flags)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		n.l.log.Error("answer a trapped call", "tid", n.Tid, "nr", n.Nr, "err", err)
	}
	n.l.release(n.slot)
}

// AddFD puts a duplicate of f into the caller's table and returns its number;
// at < 0 takes the lowest free one.
func (n *Notif) AddFD(f *os.File, at int, cloexec bool) (int, error) {
	return notifAddFD(n.l.fd(), n.ID, int(f.Fd()), at, cloexec)
}

// Listener receives a world's trapped calls.
//
// Each is received straight into a slot of a file whose pages outlive the
// daemon: that file is the journal of calls in flight. A received notification
// is never delivered again, but a successor's answer with its id works.
type Listener struct {
	raw   int
	wake  int // an eventfd: Close was called
	log   *slog.Logger
	slots *slots
	ended chan error    // what Serve is to return
	done  chan struct{} // closed when it returns
}

// NewListener takes over file, the listener. journal is the path of the slots.
func NewListener(file *os.File, journal string, log *slog.Logger) (*Listener, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	dup, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("seccomp listener: %w", err)
	}
	file.Close()
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(dup)
		return nil, fmt.Errorf("seccomp listener: %w", err)
	}
	s, err := openSlots(journal)
	if err != nil {
		unix.Close(dup)
		return nil, fmt.Errorf("seccomp journal %s: %w", journal, err)
	}
	setSyncWakeUp(dup)
	return &Listener{raw: dup, wake: wake, log: log, slots: s, ended: make(chan error, 1), done: make(chan struct{})}, nil
}

func (l *Listener) fd() int { return l.raw }

func (l *Listener) release(slot int) { l.slots.put(slot) }

// ErrWorldGone is returned by Serve when the last process of the world ended.
var ErrWorldGone = errors.New("the world is gone")

// Serve receives until Close or the world's end. handle runs on the receiving
// goroutine, for one call after the other: what is slow goes to a goroutine of
// its own, or is left to Then. Calls that a predecessor left unanswered are
// handled first, each once, with Again set.
func (l *Listener) Serve(handle func(*Notif)) error {
	defer close(l.done)
	for _, n := range l.slots.pending(l) {
		if !n.Valid() {
			l.release(n.slot)
			continue
		}
		if handle(n); n.then != nil {
			go n.then()
		}
	}
	go l.receive(handle)
	return <-l.ended
}

// receive receives until Serve is to return, or a handler has more to do: then
// another goroutine goes on.
func (l *Listener) receive(handle func(*Notif)) {
	n, err := l.next(handle)
	if err != nil || n == nil {
		l.ended <- err
		return
	}
	go l.receive(handle)
	n.then()
}

// next handles calls up to one of which the handler has more to do. nil: Close
// was called.
func (l *Listener) next(handle func(*Notif)) (*Notif, error) {
	// A thread of its own, blocked in poll: the netpoller would wake a second
	// one for each call, since the listener is always writable.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for {
		ev, err := pollEither(l.raw, l.wake)
		switch {
		case err != nil:
			return nil, err
		case ev == 0: // Close
			return nil, nil
		case ev&unix.POLLIN == 0:
			return nil, ErrWorldGone
		}
		slot, buf := l.slots.get()
		if err := notifRecv(l.raw, buf); err != nil {
			l.slots.put(slot)
			// ENOENT: the caller died before it was received.
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR) {
				continue
			}
			return nil, err
		}
		n := parseNotif(buf)
		n.l, n.slot, n.At = l, slot, time.Now()
		if handle(n); n.then != nil {
			return n, nil
		}
	}
}

// Close ends Serve and waits for it. Calls that are not answered stay in the
// journal, and the descriptor open: answers may still be under way.
func (l *Listener) Close() error {
	_, err := unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	<-l.done
	return err
}
