package rexec

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
)

// Lost ends what depended on a node that is down: deputies of its bodies die
// by SIGKILL, and bodies that it had placed here are killed.
func (s *Service) Lost(id unum.NodeID) {
	s.Homes.lost(id)
	s.Guests.lost(id)
}

func (h *Homes) lost(id unum.NodeID) {
	for _, p := range h.placedOn(id) {
		h.bereave(p)
	}
}

// placedOn lists what has its body on a node.
func (h *Homes) placedOn(id unum.NodeID) (ps []*placed) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.placed {
		if p.place.Guest == id {
			ps = append(ps, p)
		}
	}
	return ps
}

// bereave ends a deputy whose body is gone with its node.
func (h *Homes) bereave(p *placed) {
	h.whys.set(p.place.Pid, "killed: node "+string(p.place.Guest)+", where it ran, is lost")
	h.wg.Go(func() {
		<-p.ready
		if p.stub == nil {
			return
		}
		p.mu.Lock()
		p.ended = &eventReq{ID: p.place.ID, Pid: p.place.Pid, Kind: killed, Status: int(unix.SIGKILL)}
		p.mu.Unlock()
		p.stub.Kill()
		for _, c := range p.homes {
			c.Close()
		}
	})
}

// missingReq names bodies; the answer names those of them that the guest does
// not have.
type missingReq struct{ Bodies []carry.Placement }

func (g *Guests) missing(home unum.NodeID, req *missingReq) *missingReq {
	res := &missingReq{}
	for _, pl := range req.Bodies {
		if pl.Home == home && g.known(pl) == nil {
			res.Bodies = append(res.Bodies, pl)
		}
	}
	return res
}

// confirm asks the guests whether they have the bodies of deputies that were
// taken over, and ends those without: a guest may have been lost, and have come
// back as another, while this node had no daemon. It waits for guests that are
// out of reach.
func (h *Homes) confirm(taken []*placed) {
	guests := map[unum.NodeID][]*placed{}
	for _, p := range taken {
		guests[p.place.Guest] = append(guests[p.place.Guest], p)
	}
	for _, ps := range guests {
		h.wg.Go(func() {
			req := &missingReq{}
			byID := map[uint64]*placed{}
			for _, p := range ps {
				req.Bodies = append(req.Bodies, p.place)
				byID[p.place.ID] = p
			}
			res, err := unum.Call[missingReq](context.Background(), ps[0].peer, "rexec.missing", req)
			switch {
			case errors.Is(err, unum.ErrNodeLost), errors.Is(err, unum.ErrNoNode):
				res = req
			case err != nil:
				h.log.Warn("ask for bodies", "node", ps[0].place.Guest, "err", err)
				return
			}
			for _, pl := range res.Bodies {
				p := byID[pl.ID]
				if p == nil {
					continue
				}
				p.mu.Lock()
				told := p.ended != nil // the guest forgot it since its end is known here
				p.mu.Unlock()
				if !told {
					h.log.Warn("a body is gone", "pid", p.place.Pid, "node", p.place.Guest)
					h.bereave(p)
				}
			}
		})
	}
}

func (g *Guests) lost(id unum.NodeID) {
	g.mu.Lock()
	var gone []*body
	for _, b := range g.bodies {
		if b.place.Home == id { // an orphan loses no more than its parent
			gone = append(gone, b)
		}
	}
	g.mu.Unlock()
	for _, b := range gone {
		g.wg.Go(func() {
			<-b.ready
			if b.stub != nil {
				b.stub.Kill()
			}
		})
	}
}
