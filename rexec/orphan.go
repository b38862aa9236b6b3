package rexec

import (
	"golang.org/x/sys/unix"

	"unum"
	"unum/deputy"
	"unum/sys"
)

// An agent that has bodies may be killed: by whoever may on the machine, or for
// want of memory. The bodies live on, as children of pid 1, and the kernel reaps
// them. Their ends are then seen by pidfd, and the kernel tells the status since
// 6.15; before, it is lost, and told as a death by SIGKILL. So are those that
// end together with their agent. Nobody sees any more that they stop.

// outlive waits for an agent's end, and then for those of its bodies.
func (g *Guests) outlive(agent *deputy.Stub) {
	g.wg.Go(func() {
		<-agent.Gone()
		g.mu.Lock()
		var left []*body
		for _, all := range []map[unum.Pid]*body{g.bodies, g.orphans} {
			for _, b := range all {
				if b.parent == agent {
					left = append(left, b)
				}
			}
		}
		g.mu.Unlock()
		for _, b := range left {
			g.orphaned(b)
		}
	})
}

// orphaned waits for the end of a body whose agent is gone, and tells it.
func (g *Guests) orphaned(b *body) {
	g.wg.Go(func() {
		<-b.ready
		if b.stub == nil {
			return
		}
		g.log.Warn("a body has lost its agent", "pid", b.place.Pid)
		g.happened(b, orphanEnd(b.stub), unum.Usage{}, nil)
	})
}

// orphanEnd waits for the end of a process that pid 1 has inherited.
func orphanEnd(s *deputy.Stub) *sys.Siginfo {
	ws := unix.WaitStatus(unix.SIGKILL)
	if fd, err := s.Pidfd(); err == nil {
		if err := sys.PidfdWait(fd); err == nil {
			if got, err := sys.PidfdExit(fd); err == nil {
				ws = got
			}
		}
		unix.Close(fd)
	}
	<-s.Gone()
	return childInfo(s.Pid, ws)
}

// childInfo is what SIGCHLD says of a process that has ended.
func childInfo(pid unum.Pid, ws unix.WaitStatus) *sys.Siginfo {
	code, status := int32(cldExited), ws.ExitStatus()
	if ws.Signaled() {
		code, status = cldKilled, int(ws.Signal())
		if ws.CoreDump() {
			code = cldDumped
		}
	}
	si := sys.MakeSiginfo(unix.SIGCHLD, code, int32(pid), 0)
	si.SetValue(uint64(status))
	return si
}
