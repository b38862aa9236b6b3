package rexec

import (
	"context"
	"errors"
	"fmt"
	"time"

	"unum/carry"
)

// start answers rexec.start. Home asks once more if its daemon was restarted
// while it asked: also while the first birth is under way.
func (g *Guests) start(ctx context.Context, req *startReq) *startRes {
	decided := make(chan struct{})
	for {
		g.mu.Lock()
		first := g.starting[req.Place.ID]
		if first == nil {
			g.starting[req.Place.ID] = decided
			g.mu.Unlock()
			break
		}
		g.mu.Unlock()
		<-first
	}
	defer func() {
		g.mu.Lock()
		delete(g.starting, req.Place.ID)
		g.mu.Unlock()
		close(decided)
	}()
	if b := g.known(req.Place); b != nil {
		<-b.ready
		if b.stub != nil {
			return &startRes{}
		}
		if !b.doubted {
			return &startRes{Refused: "its start failed"}
		}
		// It was written down by the daemon before this one, and never born.
	}
	err := g.birth(ctx, req)
	var ex *execError
	switch {
	case err == nil:
		return &startRes{}
	case errors.As(err, &ex):
		return &startRes{Errno: int(ex.errno)}
	}
	g.log.Info("a body is refused", "pid", req.Spec.Pid, "from", req.Place.Home, "path", req.Spec.Path, "err", err)
	return &startRes{Refused: err.Error()}
}

func (g *Guests) birth(ctx context.Context, req *startReq) (err error) {
	spec := &req.Spec
	if err := g.sees(spec); err != nil {
		return err
	}
	spec.ctty = -1 // a body's session has its terminal from the agent
	if req.TTY != nil {
		if req.end, err = g.cfg.Terminal.Guests.Session(ctx, req.Place, req.TTY); err != nil {
			return fmt.Errorf("terminal of session %d: %w", spec.Sid, err)
		}
	}
	s, err := g.session(ctx, req)
	if err != nil {
		if req.end != nil {
			req.end.Close()
		}
		return err
	}
	b := &body{
		bodyRecord: bodyRecord{
			Place: req.Place, Sid: s.sid, Path: spec.Path, Started: time.Now(), Descs: req.Descs, TTY: req.TTY,
			Reapers: spec.Reapers,
		},
		place: req.Place, sess: s, parent: s.agent,
	}
	var locals []local
	ok := false
	defer func() {
		for _, l := range locals {
			if l.File != nil {
				l.File.Close()
			}
		}
		if !ok {
			g.unborn(b)
		}
	}()
	born := func() {
		g.mu.Lock()
		b.born = true
		g.mu.Unlock()
	}
	if locals, err = g.land(ctx, req, b); err != nil {
		return err
	}
	// Known before it runs, since its end may be reaped before make returns; and
	// before its group is looked for, so that nobody makes a holder meanwhile.
	g.mu.Lock()
	if g.bodies[spec.Pid] != nil {
		g.mu.Unlock()
		return fmt.Errorf("body %d: %w", spec.Pid, errBusy)
	}
	g.bodies[spec.Pid] = b
	ready := make(chan struct{})
	b.ready = ready
	g.mu.Unlock()
	defer close(ready)
	bi := &birth{spec: spec, parent: b.parent, locals: locals, turn: born}
	if bi.holder, err = g.group(ctx, s, spec); err != nil {
		return err
	}
	if req.end != nil {
		spec.fg = req.TTY.Fg && req.TTY.Ctty && spec.Pgid == spec.Pid && spec.Pid != spec.Sid
		if err := req.end.GroupReady(ctx); err != nil {
			return fmt.Errorf("foreground group of session %d: %w", spec.Sid, err)
		}
	}
	if len(spec.Reapers) > 0 && bi.holder == nil {
		if b.nursery, err = g.nurse(ctx, s, b); err != nil {
			return err
		}
		b.parent, bi.parent = b.nursery.agent, b.nursery.agent
	}
	if err := g.recBodies.save(b.key(), &b.bodyRecord); err != nil {
		return err
	}
	if bi.holder != nil {
		born()
	}
	if b.stub, err = g.mk.make(ctx, bi); err != nil {
		return err
	}
	if spec.Reaper {
		if err := g.reaper(b.stub.HostPid, true); err != nil {
			g.log.Debug("note a subreaper", "pid", spec.Pid, "err", err)
		}
	}
	for _, c := range b.guests {
		c.Started(true)
	}
	ok = true
	if b.parent.Dead() {
		g.orphaned(b)
	}
	return nil
}

// land makes the body's ends of its descriptors; also if it fails they are in
// b.guests, and the files that it returns are the caller's to close.
func (g *Guests) land(ctx context.Context, req *startReq, b *body) (locals []local, err error) {
	spec := &req.Spec
	if req.end != nil {
		b.guests = append(b.guests, req.end)
		if spec.Pid == spec.Sid {
			// It leads its session, so it takes the terminal itself.
			slave, err := req.end.Slave()
			if err != nil {
				return locals, fmt.Errorf("terminal of session %d: %w", spec.Sid, err)
			}
			spec.ctty = cttyNum
			locals = append(locals, local{Local: carry.Local{File: slave}, nums: []int{cttyNum}, cloexec: true})
			req.end.SetAgent(leader{})
		}
	}
	for _, d := range req.Descs {
		k, err := g.cfg.Carry.Kind(d.Kind)
		if err != nil {
			return locals, err
		}
		c, err := k.Land(ctx, req.Place, d)
		if err != nil {
			return locals, fmt.Errorf("fd %d (%s): %w", d.Nums[0], d.Kind, err)
		}
		b.guests = append(b.guests, c)
		locals = append(locals, local{Local: c.Local(), nums: d.Nums})
	}
	return locals, nil
}

// unborn forgets a body whose birth failed, also if its agent has told of the
// end of what was to become it: before home is answered, which may ask for the
// same number at once.
func (g *Guests) unborn(b *body) {
	for _, c := range b.guests {
		c.Started(false)
		c.Close()
	}
	g.mu.Lock()
	if g.bodies[b.place.Pid] == b || g.untold[b.place.ID] == b {
		delete(g.bodies, b.place.Pid)
		delete(g.untold, b.place.ID)
		g.recBodies.remove(b.key())
		g.recEvents.remove(b.key())
	}
	g.mu.Unlock()
	g.quit(b)
	g.leave(b.sess)
}
