package node

import (
	"golang.org/x/sys/unix"

	"unum/rexec"
	"unum/seccomp"
)

// dispatcher hands trapped calls to whoever answers them.
type dispatcher struct {
	d     *Daemon
	ready chan struct{} // closed when placement stands
	rexec *rexec.Service
}

func newDispatcher(d *Daemon) *dispatcher {
	return &dispatcher{d: d, ready: make(chan struct{})}
}

// open lets the calls in that need more than the deputies' registry.
func (p *dispatcher) open(s *rexec.Service) {
	p.rexec = s
	close(p.ready)
}

// handle runs on the receiving goroutine.
func (p *dispatcher) handle(n *seccomp.Notif) {
	if n.Nr == seccomp.PRIV && n.Arch == seccomp.ArchX86_64 {
		p.d.stubs.Handle(n)
		return
	}
	select {
	case <-p.ready:
		p.answer(n)
	default:
		// The daemon has just started; callers wait a moment.
		go func() {
			<-p.ready
			p.answer(n)
		}()
	}
}

func (p *dispatcher) answer(n *seccomp.Notif) {
	if n.Arch != seccomp.ArchX86_64 {
		n.Continue()
		return
	}
	switch n.Nr {
	case unix.SYS_EXECVE, unix.SYS_EXECVEAT:
		p.rexec.Exec(n)
	default:
		n.Continue()
	}
}
