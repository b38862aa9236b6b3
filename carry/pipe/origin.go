package pipe

import (
	"cmp"
	"os"
	"slices"

	"unum/carry"
)

// Origin says of a pipe of this node, by its inode, for which placement it was
// made, and under which numbers the deputy holds the one at home.
func (c *Carrier) Origin(ino uint64) (pl carry.Placement, nums []int, ok bool) {
	for _, h := range c.guestHalves() {
		f := h.bodyPipe()
		if f == nil {
			continue
		}
		if at, err := inode(f); err != nil || at != ino {
			continue
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.rec.Pl, slices.Clone(h.nums), true
	}
	return pl, nil, false
}

// guestHalves lists the halves that stand at a body.
func (c *Carrier) guestHalves() (hs []*half) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.halves {
		if h.side == guest {
			hs = append(hs, h)
		}
	}
	return hs
}

// bodyPipe is an end of the body's pipe, of a guest half; nil if it is gone.
func (h *half) bodyPipe() *os.File {
	switch e := h.eng.(type) {
	case *source:
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.in
	case *sink:
		e.mu.Lock()
		defer e.mu.Unlock()
		return cmp.Or(e.out, e.in)
	}
	return nil
}
