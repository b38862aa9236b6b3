package rexec

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
	"unum/deputy"
	"unum/seccomp"
	"unum/sys"
)

// Recover takes over what a daemon before this one left: deputies here, bodies
// of other nodes, processes of the control socket. It must be called before
// the node's calls are answered and before trapped execs are.
func (s *Service) Recover(ctx context.Context) error {
	if err := s.Guests.recover(ctx); err != nil {
		return fmt.Errorf("bodies: %w", err)
	}
	if err := s.Homes.recover(ctx); err != nil {
		return fmt.Errorf("deputies: %w", err)
	}
	if err := s.Runs.recover(); err != nil {
		return fmt.Errorf("processes of the control socket: %w", err)
	}
	return nil
}

// isStub says whether a process executes the stub. One that was converted does
// so from the deputies' memfd, whose name /proc shows; agents, holders and who
// was just born from that of pid 1.
func isStub(host int) bool { return isDeputy(host) || isNewborn(host) }

func isDeputy(host int) bool  { return executes(host, "/memfd:"+StubName+" ") }
func isNewborn(host int) bool { return executes(host, "/memfd:unum-world ") }

func executes(host int, name string) bool {
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", host))
	return err == nil && strings.HasPrefix(link, name)
}

// Stray decides about a stub that says hello and that nobody expects. A caller
// whose conversion the daemon before this one had begun is taken over as a
// deputy: then it returns true, and the call is to be handled again. A birth
// that was begun is ended; home asks again.
func (s *Service) Stray(ctx context.Context, host int) bool {
	if !isStub(host) {
		return false
	}
	h := s.Homes
	h.mu.Lock()
	var p *placed
	for pid, r := range h.redo {
		if r.Host == host {
			p = r
			delete(h.redo, pid)
		}
	}
	h.mu.Unlock()
	if p != nil {
		err := h.takeOver(ctx, p)
		if err == nil {
			h.confirm([]*placed{p})
			return true
		}
		h.log.Error("take over a deputy", "pid", p.place.Pid, "err", err)
		h.signalBody(p, unix.SIGKILL)
		h.abandon(p)
	}
	h.log.Info("a stray stub is ended", "host", host)
	unix.Kill(host, unix.SIGKILL)
	return false
}

// recover resumes the deputies. A record whose process is no stub is of a
// caller that was not yet converted: it issues its exec again, or has ended.
func (h *Homes) recover(ctx context.Context) error {
	all, err := h.records.load()
	if err != nil {
		return err
	}
	var taken []*placed
	defer func() { h.confirm(taken) }()
	for key, r := range all {
		peer, err := h.cfg.Peer(r.Place.Guest)
		if err != nil {
			// The guest has left, and the body is gone with it.
			h.log.Warn("a deputy without a guest", "pid", r.Place.Pid, "err", err)
			if t, err := sys.ReadTask(r.Host); err == nil && t.Start == r.Start && isDeputy(r.Host) {
				unix.Kill(r.Host, unix.SIGKILL)
			}
			h.records.remove(key)
			continue
		}
		p := h.newPlaced(r, peer)
		t, err := sys.ReadTask(r.Host)
		switch {
		case err != nil || t.Start != r.Start || t.State == 'Z':
			// The caller or the deputy was killed meanwhile.
			h.records.remove(key)
			h.wg.Go(func() { h.signalBody(p, unix.SIGKILL) })
			continue
		case !isDeputy(r.Host):
			h.mu.Lock()
			h.placed[p.place.Pid], h.redo[p.place.Pid] = p, p
			h.mu.Unlock()
			h.wg.Go(func() { h.guard(p) })
			continue
		}
		if err := h.takeOver(ctx, p); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		taken = append(taken, p)
	}
	return nil
}

func (h *Homes) takeOver(ctx context.Context, p *placed) error {
	stub, err := h.cfg.Registry.Watch(p.Host, p.place.Pid)
	if err != nil {
		return err
	}
	if p.TTY != nil {
		if end, err := h.cfg.Terminal.Homes.Attach(ctx, p.place, p.TTY, nil); err == nil {
			p.homes = append(p.homes, end)
		} else {
			h.log.Warn("resume the terminal", "pid", p.place.Pid, "err", err)
		}
	}
	for _, d := range p.Descs {
		f, err := stub.Getfd(d.Nums[0])
		if errors.Is(err, unix.EBADF) {
			continue // the body had closed it, and the deputy too
		}
		if err != nil {
			return err
		}
		k, err := h.cfg.Carry.Kind(d.Kind)
		if err != nil {
			return err
		}
		c, err := k.ResumeHome(ctx, p.place, d, f)
		if err != nil {
			f.Close()
			h.log.Warn("resume a descriptor", "pid", p.place.Pid, "fd", d.Nums[0], "kind", d.Kind, "err", err)
			continue
		}
		p.homes = append(p.homes, c)
	}
	h.mu.Lock()
	h.placed[p.place.Pid] = p
	h.mu.Unlock()
	if err := p.recall(stub); err != nil {
		return err
	}
	// Only now: it calls at once, and is told its signals again.
	if stub, err = h.cfg.Registry.Adopt(p.Host, p.place.Pid); err != nil {
		return err
	}
	stub.OnOrphan(func(*deputy.Result) {
		p.mu.Lock()
		p.inStop = false
		p.mu.Unlock()
	})
	h.run(p, stub)
	return nil
}

// guard kills the body of a placement whose caller dies before it has issued
// its exec again.
func (h *Homes) guard(p *placed) {
	fd, err := sys.PidfdOpen(p.Host)
	if err == nil {
		sys.PidfdWait(fd)
		unix.Close(fd)
	}
	h.mu.Lock()
	still := h.redo[p.place.Pid] == p
	delete(h.redo, p.place.Pid)
	h.mu.Unlock()
	if still {
		h.signalBody(p, unix.SIGKILL)
		h.abandon(p)
	}
}

// redone goes on with a placement that the daemon before this one began: the
// same operation, asked of the same guest, which knows whether it has done it.
func (h *Homes) redone(n *seccomp.Notif) bool {
	h.mu.Lock()
	if len(h.redo) == 0 {
		h.mu.Unlock()
		return false
	}
	h.mu.Unlock()
	t, err := sys.ReadTask(n.Tid)
	if err != nil {
		return false
	}
	h.mu.Lock()
	p := h.redo[t.Pid]
	delete(h.redo, t.Pid)
	h.mu.Unlock()
	if p == nil || p.placedRecord.Start != t.Start {
		return false
	}
	h.wg.Go(func() { h.again(n, t, p) })
	return true
}

func (h *Homes) again(n *seccomp.Notif, t *sys.Task, p *placed) {
	ctx := context.Background()
	c := &caller{n: n, task: t}
	fail := func(err error) {
		h.signalBody(p, unix.SIGKILL)
		h.abandon(p)
		h.stay(c, err)
	}
	if err := h.reread(c); err != nil {
		fail(err)
		return
	}
	spec, err := h.gather(c)
	if err != nil {
		fail(err)
		return
	}
	pidfd, err := sys.PidfdOpen(p.Host)
	if err != nil {
		fail(err)
		return
	}
	defer unix.Close(pidfd)
	if p.TTY != nil {
		end, err := h.cfg.Terminal.Homes.Attach(ctx, p.place, p.TTY, nil)
		if err != nil {
			fail(err)
			return
		}
		p.homes = append(p.homes, end)
	}
	for _, d := range p.Descs {
		f, err := sys.PidfdGetfd(pidfd, d.Nums[0])
		if err != nil {
			fail(err)
			return
		}
		k, err := h.cfg.Carry.Kind(d.Kind)
		if err == nil {
			var half carry.Home
			if half, err = k.ResumeHome(ctx, p.place, d, f); err == nil {
				p.homes = append(p.homes, half)
			}
		}
		if err != nil {
			f.Close()
			fail(err)
			return
		}
	}
	p.req = &startReq{Place: p.place, Spec: *spec, Descs: p.Descs, TTY: p.TTY}
	h.ask(ctx, c, p)
}

// recover finds the sessions and bodies. Ends that were written down are told;
// births that were under way are undone, and asked for again by their homes.
func (g *Guests) recover(ctx context.Context) error {
	if err := g.openRecords(); err != nil {
		return err
	}
	sessions, err := g.recSessions.load()
	if err != nil {
		return err
	}
	for key, r := range sessions {
		if err := g.resumeSession(key, r); err != nil {
			return err
		}
	}
	events, err := g.recEvents.load()
	if err != nil {
		return err
	}
	bodies, err := g.recBodies.load()
	if err != nil {
		return err
	}
	for key, e := range events {
		if r := bodies[key]; r == nil || r.Place.ID != e.ID {
			// Of one before, whose end is known: the daemon died while forgetting it.
			g.recEvents.remove(key)
			delete(events, key)
		}
	}
	for key, r := range bodies {
		if err := g.resumeBody(ctx, key, r, events[key]); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	// Told by the agents only now, when all bodies are known. They may
	// have children that ended meanwhile.
	for _, s := range g.sessions {
		killed := s.agent.Dead()
		if !killed {
			if s.agent, err = g.cfg.Registry.Adopt(s.agent.HostPid, s.agent.Pid); err != nil {
				return err
			}
		}
		for _, t := range s.ends {
			if s.sid == rootSession {
				t.SetAgent(leader{})
			} else {
				t.SetAgent(&sessionAgent{agent: s.agent, cookie: g.cfg.Cookie})
			}
		}
		s.ends = nil
		g.mu.Lock()
		for _, b := range g.bodies {
			if b.sess == s && b.nursery == nil {
				b.parent = s.agent
			}
		}
		g.mu.Unlock()
		g.outlive(s.agent)
		if killed {
			continue
		}
		s.watch(g.cfg.Cookie, g.log, g.endedAll).reap()
	}
	return g.resumeNurseries()
}

// doubt decides what became of a body that is nowhere: its agent has told all
// ends when it has settled.
func (g *Guests) doubt(b *body, ready chan struct{}) {
	settled := b.sess.settled
	if b.nursery != nil {
		settled = b.nursery.settled
	}
	g.wg.Go(func() {
		<-settled
		g.mu.Lock()
		never := g.find(b.place.Pid) == b
		if never {
			delete(g.bodies, b.place.Pid)
			delete(g.orphans, b.place.Pid)
			g.recBodies.remove(b.key())
			b.stub = nil
		}
		g.mu.Unlock()
		if never {
			g.log.Info("a body was never born", "pid", b.place.Pid, "home", b.place.Home)
			for _, c := range b.guests {
				c.Started(false)
				c.Close()
			}
			g.quit(b)
			g.leave(b.sess)
			g.retire(b.sess)
		}
		close(ready)
	})
}

func (g *Guests) resumeSession(key string, r *sessionRecord) error {
	var sid unum.Pid
	if _, err := fmt.Sscan(key, &sid); err != nil {
		return fmt.Errorf("session record %q: %w", key, err)
	}
	s := &session{sid: sid, home: r.Home, term: r.Term, holders: map[unum.Pid]*deputy.Stub{}}
	pid, err := sys.WorldPid(r.Agent)
	if err == nil && isStub(r.Agent) {
		s.agent, s.settled = &deputy.Stub{HostPid: r.Agent, Pid: pid}, make(chan struct{})
	} else {
		s.agent = deputy.Ended(sid) // killed meanwhile; it may have left bodies
	}
	for p, host := range r.Holders {
		if !isStub(host) {
			continue
		}
		if s.holders[p], err = g.cfg.Registry.Adopt(host, p); err != nil {
			return err
		}
		s.holders[p].OnSignal(nil)
	}
	g.sessions[sid] = s
	return nil
}

func (g *Guests) resumeBody(ctx context.Context, key string, r *bodyRecord, end *eventReq) error {
	ready := make(chan struct{})
	b := &body{bodyRecord: *r, place: r.Place, sess: g.sessions[r.Sid], ready: ready, born: true}
	for _, id := range g.ledger.of(r.Place.ID) {
		b.delivered(id)
	}
	if b.sess == nil {
		g.recBodies.remove(key)
		g.recEvents.remove(key)
		return nil
	}
	g.rejoin(b)
	host, err := g.cfg.ToHost(r.Place.Pid)
	if err == nil && isNewborn(host) && !r.Orphan {
		// It never came to its exec. Forgotten first: its death is not the body's,
		// also if this daemon dies now.
		g.recBodies.remove(key)
		if s, err := g.cfg.Registry.Watch(host, r.Place.Pid); err == nil {
			s.Kill()
			<-s.Gone()
		}
		return nil
	}
	if err == nil {
		b.stub, err = g.cfg.Registry.Watch(host, r.Place.Pid)
	}
	switch {
	case err == nil:
	case end == nil && b.sess.agent.Dead():
		// Ended, or never born: with its agent nobody knows.
		g.seq = max(g.seq+1, monotonic())
		b.stub, end = deputy.Ended(r.Place.Pid), &eventReq{
			ID: r.Place.ID, Pid: r.Place.Pid, Kind: killed, Status: int(unix.SIGKILL), Seq: g.seq,
		}
	default:
		// Ended, and its agent knows; or never born.
		b.stub, b.doubted = deputy.Ended(r.Place.Pid), end == nil
	}
	switch {
	case b.doubted:
		g.doubt(b, ready)
	case r.Orphan:
		b.decide = ready // home is asked again
	default:
		close(ready)
	}
	for _, d := range r.Descs {
		k, err := g.cfg.Carry.Kind(d.Kind)
		if err != nil {
			return err
		}
		c, err := k.ResumeGuest(ctx, r.Place, d)
		if err != nil {
			g.log.Warn("resume a descriptor", "pid", r.Place.Pid, "fd", d.Nums[0], "kind", d.Kind, "err", err)
			continue
		}
		b.guests = append(b.guests, c)
	}
	if r.TTY != nil {
		t, err := g.cfg.Terminal.Guests.ResumeSession(ctx, r.Place, r.TTY)
		if err != nil {
			g.log.Warn("resume the terminal", "pid", r.Place.Pid, "err", err)
		} else {
			b.guests = append(b.guests, t)
			b.sess.ends = append(b.sess.ends, t)
		}
	}
	b.sess.bodies++
	if end == nil || end.Kind == stopped || end.Kind == continued {
		if r.Orphan {
			g.orphans[r.Place.Pid] = b
		} else {
			g.bodies[r.Place.Pid] = b
		}
		if end != nil {
			told := make(chan struct{})
			b.last, b.news = told, end.Seq
			g.wg.Go(func() {
				defer close(told)
				g.tell(b, end, false)
			})
		}
		return nil
	}
	b.over = true
	g.untold[r.Place.ID] = b
	g.wg.Go(func() {
		<-b.ready
		g.tell(b, end, true)
	})
	return nil
}
