package rexec

import (
	"errors"

	"golang.org/x/sys/unix"

	"unum"
	"unum/deputy"
	"unum/sys"
)

// signal delivers one signal to a body.
func (g *Guests) signal(req *signalReq) error {
	g.mu.Lock()
	b := g.find(req.Pid)
	if b == nil || b.place.ID != req.ID {
		g.mu.Unlock()
		return unum.ErrNoProcess
	}
	group := deputy.GroupOf(&req.Info)
	if group != 0 && b.adopted() {
		g.mu.Unlock()
		return nil // it was born here, and has it as a native of this node
	}
	if req.Once != 0 && b.delivered(req.Once) || group != 0 && b.delivered(group) {
		g.mu.Unlock()
		return nil
	}
	if group != 0 {
		b.after = group
	}
	g.mu.Unlock()
	<-b.ready
	if b.stub == nil {
		return unum.ErrNoProcess
	}
	info := &req.Info
	if group != 0 && !isStub(b.stub.HostPid) {
		// The mark is for deputies: it has not been placed again.
		info = sys.MakeSiginfo(req.Info.Signo(), -1 /* SI_QUEUE */, req.Info.Pid(), req.Info.Uid())
	}
	if info.Code() >= 0 {
		// The kernel does not let one process pretend another's kill; a queued
		// signal carries the true sender's numbers.
		info = nil
		if p := req.Info.Pid(); req.Info.Code() == 0 && p != 0 {
			info = sys.MakeSiginfo(req.Info.Signo(), -1 /* SI_QUEUE */, p, req.Info.Uid())
		}
	}
	// Its deputy runs and so should it: this signal has swept away a SIGCONT
	// that waited in the deputy (signal(7)).
	if req.Once != 0 && stops(req.Info.Signo()) {
		if t, err := sys.ReadTask(b.stub.HostPid); err == nil && t.State == 'T' {
			b.stub.Signal(unix.SIGCONT, nil)
		}
	}
	if err := g.send(b, req.Info.Signo(), info); errors.Is(err, deputy.ErrGone) {
		return unum.ErrNoProcess
	} else if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, id := range [2]uint64{req.Once, group} {
		if id != 0 {
			g.ledger.add(req.ID, id)
		}
	}
	return nil
}

func stops(sig unix.Signal) bool {
	return sig == unix.SIGTSTP || sig == unix.SIGTTIN || sig == unix.SIGTTOU || sig == unix.SIGSTOP
}

// delivered says whether the signal with this id was delivered before, and
// remembers it. A home daemon that was restarted may tell its last one again.
func (b *body) delivered(id uint64) bool {
	for _, o := range b.once {
		if o == id {
			return true
		}
	}
	b.once[b.at] = id
	b.at = (b.at + 1) % len(b.once)
	return false
}
