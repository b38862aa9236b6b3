package node

import (
	"context"

	"golang.org/x/sys/unix"

	"unum/calls"
	"unum/rexec"
	"unum/seccomp"
)

// dispatcher hands trapped calls to whoever answers them.
type dispatcher struct {
	d     *Daemon
	ready chan struct{} // closed when placement stands
	rexec *rexec.Service
	calls *calls.Calls

	commands commands
}

func newDispatcher(d *Daemon) *dispatcher {
	return &dispatcher{d: d, ready: make(chan struct{})}
}

// open lets the calls in that need more than the deputies' registry.
func (p *dispatcher) open(s *rexec.Service) {
	p.rexec = s
	close(p.ready)
}

// close ends what waits for other nodes.
func (p *dispatcher) close() {
	select {
	case <-p.ready:
		p.calls.Close()
	default:
	}
}

// handle runs on the receiving goroutine.
func (p *dispatcher) handle(n *seccomp.Notif) {
	if n.Nr == seccomp.PRIV && n.Arch == seccomp.ArchX86_64 {
		p.private(n)
		return
	}
	select {
	case <-p.ready:
		if more := p.answer(n); more != nil {
			n.Then(more)
		}
	default:
		// The daemon has just started; callers wait a moment.
		go func() {
			<-p.ready
			if more := p.answer(n); more != nil {
				more()
			}
		}()
	}
}

// private is a stub's own call. One that is not known yet may be a stub of the
// daemon before this one: it is adopted before placement stands, which may need
// it, or is a stray.
func (p *dispatcher) private(n *seccomp.Notif) {
	if p.d.stubs.Handle(n) {
		return
	}
	known := p.d.stubs.Known(n.Tid)
	go func() {
		select {
		case <-known:
			if p.d.stubs.Handle(n) {
				return
			}
			<-p.ready
		case <-p.ready:
			p.d.stubs.Unawait(n.Tid)
		}
		if !p.d.stubs.Handle(n) {
			if p.rexec.Stray(context.Background(), n.Tid) && p.d.stubs.Handle(n) {
				return
			}
			// Somebody made our private call.
			p.d.log.Warn("unexpected deputy call", "tid", n.Tid, "reason", n.Args[0])
			n.Errno(unix.ENOSYS)
		}
	}()
}

// answer answers a call; what is left to do, and may take long, it returns.
func (p *dispatcher) answer(n *seccomp.Notif) (more func()) {
	if n.Arch != seccomp.ArchX86_64 {
		n.Continue()
		return nil
	}
	switch n.Nr {
	case unix.SYS_EXECVE, unix.SYS_EXECVEAT:
		return p.rexec.Exec(n)
	}
	p.calls.Handle(n)
	return nil
}
