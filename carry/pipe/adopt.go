package pipe

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"unum"
)

// adopt resumes halves that need no node for it: those whose placement is over,
// and those that have only their goodbye left. The node resumes the others.
func (c *Carrier) adopt() {
	for _, path := range c.pages() {
		if err := c.adoptOne(path, false); err != nil {
			c.log.Warn("a carried pipe cannot be taken up", "path", path, "err", err)
		}
	}
}

// pages lists the pages of the StateDir.
func (c *Carrier) pages() (paths []string) {
	names, err := os.ReadDir(c.env.StateDir)
	if err != nil {
		return nil
	}
	for _, e := range names {
		if strings.HasPrefix(e.Name(), "pipe-") {
			paths = append(paths, filepath.Join(c.env.StateDir, e.Name()))
		}
	}
	return paths
}

// adoptOne takes up the half of a page; orphan: although the node may not have
// had done with it.
func (c *Carrier) adoptOne(path string, orphan bool) error {
	p, b, err := openPage(path)
	if err != nil {
		return err
	}
	var rec record
	if err := msgpack.Unmarshal(b, &rec); err != nil || !orphan && !p.has(fAdrift|fReleased) {
		p.close()
		return err
	}
	c.mu.Lock()
	known := c.halves[rec.Key] != nil
	c.mu.Unlock()
	if known {
		p.close()
		return nil
	}
	h := c.newHalf(rec, p)
	h.refs = 0
	close(h.left)
	var f *os.File
	if !p.has(fReleased) && rec.Key.Side == home {
		f, err = c.env.Keeper.Take(h.pipeName())
		if errors.Is(err, fs.ErrNotExist) {
			p.set(fReleased) // the deputy is gone, and the pipe with it
		} else if err != nil {
			p.close()
			return err
		} else {
			defer f.Close()
		}
	}
	p.set(fAdrift)
	if err := h.resume(f); err != nil {
		if errors.Is(err, fs.ErrNotExist) { // it was over, or its pipe is gone
			h.abandon()
			return nil
		}
		h.cancel()
		p.close()
		return err
	}
	return nil
}

const (
	// orphanAfter is how long a page waits for the node to resume its half.
	orphanAfter = time.Minute
	// mournAfter is how long the half of a body that is gone waits for its
	// home. A node that is away longer than its lease counts as lost.
	mournAfter = time.Minute
	tendEvery  = 10 * time.Second
)

// tend looks after halves that nobody else will end.
func (c *Carrier) tend() {
	defer c.wg.Done()
	orphans := c.pages()
	began := time.Now()
	t := time.NewTicker(tendEvery)
	defer t.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-t.C:
		}
		c.mourn(mournAfter)
		if orphans != nil && time.Since(began) > orphanAfter {
			for _, path := range orphans {
				if err := c.adoptOne(path, true); err != nil && !errors.Is(err, fs.ErrNotExist) {
					c.log.Warn("a carried pipe cannot be taken up", "path", path, "err", err)
				}
			}
			orphans = nil
		}
	}
}

// mourn ends guest halves whose home is lost, or whose body is gone and whose
// home was not heard of for so long.
func (c *Carrier) mourn(after time.Duration) {
	for _, h := range c.guestHalves() {
		h.mu.Lock()
		alone := h.link == nil && time.Since(h.unlinked) > after
		h.mu.Unlock()
		_, err := c.env.Peer(h.rec.Pl.Home)
		lost := errors.Is(err, unum.ErrNodeLost) || errors.Is(err, unum.ErrNoNode)
		if lost || alone && h.bodyGone() {
			h.discard()
		}
	}
}

// bodyGone says that no process holds the body's end any more.
func (h *half) bodyGone() bool {
	switch e := h.eng.(type) {
	case *sink:
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.gone || e.released
	case *source:
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.in == nil || hungUp(e.in)
	}
	return true
}
