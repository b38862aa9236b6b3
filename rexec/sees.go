package rexec

import (
	"fmt"

	"golang.org/x/sys/unix"

	"unum"
)

// sees says whether this node's world has the program and the directory that
// the caller has at home. Most file systems are seen by all, but one that was
// mounted inside a world is that node's own.
func (g *Guests) sees(spec *Spec) error {
	if spec.File == "" {
		return nil
	}
	if err := g.same(spec.File, spec.FileIno); err != nil {
		return err
	}
	return g.same(spec.Cwd, spec.CwdIno)
}

// same says whether a path of the world leads to the inode ino here.
func (g *Guests) same(path string, ino uint64) error {
	fd, err := unix.Openat2(int(g.cfg.WorldRoot.Fd()), path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT,
	})
	if err != nil {
		return fmt.Errorf("%s: %w: %w", path, err, unum.ErrStaysHome)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if st.Ino != ino {
		return fmt.Errorf("%s is another file there: %w", path, unum.ErrStaysHome)
	}
	return nil
}
