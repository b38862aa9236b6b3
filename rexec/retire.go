package rexec

import (
	"time"

	"unum"
	"unum/deputy"
	"unum/sys"
)

// idle is how long a session without bodies keeps its agent.
const idle = 2 * time.Second

// retire ends a session's agent and holders when no process of the session is
// left here. The last body's children may live on: then it stays, and is
// looked at again when another body of the session ends, or by Sweep.
func (g *Guests) retire(s *session) {
	g.mu.Lock()
	empty := s.bodies == 0 && s.sid != rootSession
	g.mu.Unlock()
	if empty {
		time.AfterFunc(idle, func() {
			g.mu.Lock()
			unused := s.unused()
			g.mu.Unlock()
			if unused {
				g.sweep(s)
			}
		})
	}
}

// unused says whether a session has had no bodies for so long that its agent is
// to end: the next command of a shell that runs one after the other finds it.
// Preconditions: Guests.mu is held.
func (s *session) unused() bool {
	return s.bodies == 0 && s.sid != rootSession && time.Since(s.left) >= idle
}

// Sweep looks at all sessions.
func (g *Guests) Sweep() {
	g.mu.Lock()
	var all []*session
	for _, s := range g.sessions {
		if s.unused() {
			all = append(all, s)
		}
	}
	g.mu.Unlock()
	for _, s := range all {
		g.sweep(s)
	}
}

func (g *Guests) sweep(s *session) {
	pids, err := g.cfg.WorldPids()
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.busy(s) || s.agent == nil {
		return
	}
	ours := map[int]bool{s.agent.HostPid: true}
	for _, h := range s.holders {
		ours[h.HostPid] = true
	}
	for _, p := range pids {
		if ours[p] {
			continue
		}
		if t, err := sys.ReadTask(p); err == nil && t.Sid == s.sid && t.State != 'Z' {
			return
		}
	}
	for _, h := range s.holders {
		h.Kill()
		<-h.Gone()
	}
	// The holders' numbers and its own are free again when it is gone, for who
	// waits for s.mu.
	s.agent.Kill()
	<-s.agent.Gone()
	s.agent, s.holders = nil, map[unum.Pid]*deputy.Stub{}
	g.recSessions.remove(s.sid.String())
	g.cfg.Terminal.Guests.EndSession(s.home, s.sid)
	g.mu.Lock()
	defer g.mu.Unlock()
	if s.bodies == 0 && g.sessions[s.sid] == s {
		delete(g.sessions, s.sid)
	}
}

// busy says whether a session has bodies, or is about to.
func (g *Guests) busy(s *session) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return s.bodies != 0 || g.sessions[s.sid] != s
}
