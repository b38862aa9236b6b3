package pipe

import (
	"os"

	"golang.org/x/sys/unix"

	"unum/carry"
)

// idle notes that this daemon holds a read end which it never reads from: a
// sink keeps one after the end of its stream, to see what the body has left.
// by is 1 when it is opened and -1 when it is closed.
func (c *Carrier) idle(f *os.File, by int) {
	if f == nil {
		return
	}
	ino, err := inode(f)
	if err != nil {
		return
	}
	c.idleMu.Lock()
	defer c.idleMu.Unlock()
	if c.idles == nil {
		c.idles = map[uint64]int{}
	}
	if c.idles[ino] += by; c.idles[ino] <= 0 {
		delete(c.idles, ino)
	}
}

func (c *Carrier) isIdle(ino uint64) bool {
	if c == nil {
		return false
	}
	c.idleMu.Lock()
	defer c.idleMu.Unlock()
	return c.idles[ino] > 0
}

func inode(f *os.File) (uint64, error) {
	var st unix.Stat_t
	err := fstat(f, &st)
	return st.Ino, err
}

// SoleReader is the function of that name, which also knows the read ends that
// this daemon holds idly.
func (c *Carrier) SoleReader(p *carry.Proc, fd *carry.FD) (bool, error) {
	sole, _, err := soleReader(c.env, c, p, fd)
	return sole, err
}
