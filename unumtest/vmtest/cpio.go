package vmtest

import (
	"fmt"
	"io"
	"io/fs"
)

// cpio writes the "newc" format, as the kernel reads it:
// Documentation/driver-api/early-userspace/buffer-format.rst.
type cpio struct {
	w   io.Writer
	n   int64
	ino int
	err error
}

const (
	typeReg  = 0o100000
	typeDir  = 0o040000
	typeLink = 0o120000
	typeChar = 0o020000
)

func (c *cpio) write(p []byte) {
	if c.err != nil {
		return
	}
	_, c.err = c.w.Write(p)
	c.n += int64(len(p))
}

func (c *cpio) pad() {
	if r := c.n % 4; r != 0 {
		c.write(make([]byte, 4-r))
	}
}

// header writes an entry's header; name is relative to the root.
func (c *cpio) header(name string, mode fs.FileMode, kind uint32, size int64, major, minor uint32) {
	c.ino++
	nlink := 1
	if kind == typeDir {
		nlink = 2
	}
	h := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.ino, kind|unixMode(mode), 0, 0, nlink, 0, size, 0, 0, major, minor, len(name)+1, 0)
	c.write([]byte(h + name + "\x00"))
	c.pad()
}

// unixMode returns the permission bits as Linux has them.
func unixMode(m fs.FileMode) uint32 {
	u := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		u |= 0o4000
	}
	if m&fs.ModeSetgid != 0 {
		u |= 0o2000
	}
	if m&fs.ModeSticky != 0 {
		u |= 0o1000
	}
	return u
}

func (c *cpio) dir(name string, mode fs.FileMode) { c.header(name, mode, typeDir, 0, 0, 0) }

func (c *cpio) file(name string, mode fs.FileMode, data []byte) {
	c.header(name, mode, typeReg, int64(len(data)), 0, 0)
	c.write(data)
	c.pad()
}

func (c *cpio) symlink(name, target string) {
	c.header(name, 0o777, typeLink, int64(len(target)), 0, 0)
	c.write([]byte(target))
	c.pad()
}

func (c *cpio) char(name string, mode fs.FileMode, major, minor uint32) {
	c.header(name, mode, typeChar, 0, major, minor)
}

// close ends the archive and returns the first error.
func (c *cpio) close() error {
	c.header("TRAILER!!!", 0, 0, 0, 0, 0)
	return c.err
}
