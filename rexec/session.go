package rexec

import (
	"context"
	"fmt"
	"sync"
	"time"

	"unum"
	"unum/carry/tty"
	"unum/deputy"
)

// session is one session of another node on this one: its agent has the
// session's number, is its leader, and forks the bodies.
type session struct {
	sid  unum.Pid
	home unum.NodeID
	term unum.NodeID // whose line is its controlling terminal; "" without one
	ends []*tty.End  // of its bodies, while a new daemon takes over
	parent

	mu      sync.Mutex // guards below; held while a group is made
	holders map[unum.Pid]*deputy.Stub
	bodies  int       // guarded by Guests.mu
	left    time.Time // when the last body went; guarded by Guests.mu
}

// sessionRecord is what a successor must know of a session: host PIDs of its
// agent and holders.
type sessionRecord struct {
	Home    unum.NodeID
	Term    unum.NodeID
	Agent   int
	Holders map[unum.Pid]int
}

// rootSession is the pseudo session of bodies that lead their own.
const rootSession unum.Pid = 0

// note writes a session down. Preconditions: s.mu is held.
func (g *Guests) note(s *session) error {
	r := &sessionRecord{Home: s.home, Term: s.term, Agent: s.agent.HostPid, Holders: map[unum.Pid]int{}}
	for p, h := range s.holders {
		r.Holders[p] = h.HostPid
	}
	return g.recSessions.save(s.sid.String(), r)
}

// session finds or makes the session that a body goes into.
func (g *Guests) session(ctx context.Context, req *startReq) (*session, error) {
	sid := req.Spec.Sid
	if req.Spec.Pid == sid {
		sid = rootSession
	}
	g.mu.Lock()
	s := g.sessions[sid]
	if s == nil {
		s = &session{sid: sid, home: req.Place.Home, holders: map[unum.Pid]*deputy.Stub{}}
		g.sessions[sid] = s
	}
	s.bodies++
	g.mu.Unlock()

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agent != nil && !s.agent.Dead() {
		if req.end != nil && s.sid != rootSession && s.term != req.Place.Home {
			// A chain of placements has brought the session here by another node,
			// and its controlling terminal is that node's line.
			g.leave(s)
			return nil, fmt.Errorf("session %d has its terminal by way of %s there: %w", s.sid, s.term, errBusy)
		}
		return s, nil
	}
	// A first one, or one that somebody has killed with its group.
	agent, err := g.makeAgent(ctx, s, req)
	if err != nil {
		g.leave(s)
		return nil, err
	}
	s.agent = agent
	if err := g.note(s); err != nil {
		g.leave(s)
		return nil, err
	}
	s.watch(g.cfg.Cookie, g.log, g.endedAll)
	g.outlive(agent)
	return s, nil
}

func (g *Guests) makeAgent(ctx context.Context, s *session, req *startReq) (*deputy.Stub, error) {
	if s.sid == rootSession {
		// Its own agent, since the root agent's children are agents.
		return g.mk.agent(ctx, g.mk.root, 0, false, true, nil)
	}
	if req.end == nil || req.end.HasAgent() {
		return g.mk.agent(ctx, g.mk.root, s.sid, true, false, nil)
	}
	slave, err := req.end.Slave()
	if err != nil {
		return nil, fmt.Errorf("terminal of session %d: %w", s.sid, err)
	}
	defer slave.Close()
	agent, err := g.mk.agent(ctx, g.mk.root, s.sid, true, false, slave)
	if err == nil {
		s.term = req.Place.Home
		req.end.SetAgent(&sessionAgent{agent: agent, cookie: g.cfg.Cookie})
	}
	return agent, err
}

// leave undoes session's count.
func (g *Guests) leave(s *session) {
	g.mu.Lock()
	s.bodies--
	s.left = time.Now()
	g.mu.Unlock()
}

// group makes sure that the body's process group exists. It returns the holder
// that must become the body, if its PID is the group's and is held.
func (g *Guests) group(ctx context.Context, s *session, spec *Spec) (*deputy.Stub, error) {
	for {
		s.mu.Lock()
		if spec.Pgid == spec.Pid {
			h, err := g.takeHolder(s, spec.Pid)
			s.mu.Unlock()
			return h, err
		}
		if h := s.holders[spec.Pgid]; h != nil && h.Dead() {
			delete(s.holders, spec.Pgid) // killed with its group
		}
		if spec.Pgid == spec.Sid || s.holders[spec.Pgid] != nil {
			s.mu.Unlock()
			return nil, nil
		}
		if l := g.groupLeader(spec.Pgid); l != nil {
			// It is here, or about to be.
			s.mu.Unlock()
			<-l.ready
			if l.stub != nil {
				return nil, nil
			}
			continue
		}
		h, err := g.mk.agent(ctx, s.agent, spec.Pgid, false, true, nil)
		if err == nil {
			s.holders[spec.Pgid] = h
			err = g.note(s)
		}
		s.mu.Unlock()
		if err != nil {
			return nil, fmt.Errorf("process group %d: %w", spec.Pgid, err)
		}
		return nil, nil
	}
}

// takeHolder returns the stub that has the number of a group's leader, if there
// is one: it becomes the leader. Preconditions: s.mu is held.
func (g *Guests) takeHolder(s *session, pid unum.Pid) (*deputy.Stub, error) {
	h := s.holders[pid]
	delete(s.holders, pid)
	if h == nil || h.Dead() {
		return nil, nil
	}
	return h, g.note(s)
}

// groupLeader returns the body here that leads a group, so that the group
// exists, or will, without a holder.
func (g *Guests) groupLeader(pgid unum.Pid) *body {
	g.mu.Lock()
	defer g.mu.Unlock()
	if b := g.bodies[pgid]; b != nil && b.place.Pgid == pgid {
		return b
	}
	return nil
}
