package sys

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Ticker is a time.Ticker that wakes one thread. A timer of the Go runtime also
// wakes its monitor, twice, which is most of what a tick of an idle daemon
// costs. timerfd_create(2), 2.6.25.
type Ticker struct{ f *os.File }

// NewTicker makes a ticker.
func NewTicker(every time.Duration) (*Ticker, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	t := &Ticker{os.NewFile(uintptr(fd), "timerfd")}
	if err := t.Reset(every); err != nil {
		t.f.Close()
		return nil, err
	}
	return t, nil
}

// Reset begins anew, with another period.
func (t *Ticker) Reset(every time.Duration) error {
	ts := unix.NsecToTimespec(every.Nanoseconds())
	var err error
	if cerr := control(t.f, func(fd int) {
		err = unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{Interval: ts, Value: ts}, nil)
	}); cerr != nil {
		return cerr
	}
	return os.NewSyscallError("timerfd_settime", err)
}

// Wait returns at the next tick, at once if one has passed since the last
// Wait; those that were missed are one. After Close it returns an error.
func (t *Ticker) Wait() error {
	rc, err := t.f.SyscallConn()
	if err != nil {
		return err
	}
	var b [8]byte
	var rerr error
	err = rc.Read(func(fd uintptr) bool {
		_, rerr = RawRead(int(fd), b[:])
		return rerr != unix.EAGAIN
	})
	if err == nil && rerr != nil {
		err = os.NewSyscallError("read", rerr)
	}
	return err
}

// Close ends the ticker, and a Wait.
func (t *Ticker) Close() error { return t.f.Close() }
