package file

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
)

// path carries files that the new process opens again under their name:
// directories, O_PATH descriptors, and regular files whose description nobody
// else holds. Nobody else ever will: the only copy left at home is the
// deputy's, which passes it to no one, so its position need not be kept.
type path struct{ k *Kinds }

// pathDesc is Desc.Data of the kind.
type pathDesc struct {
	Path string
	Ino  uint64
	Type uint32 // S_IFMT bits
	Pos  int64
}

func (path) Name() string { return "path" }

func (p path) Claim(_ context.Context, proc *carry.Proc, fd *carry.FD) (*carry.Desc, error) {
	typ := fd.Stat.Mode & unix.S_IFMT
	opath := fd.Flags&unix.O_PATH != 0
	if typ != unix.S_IFREG && typ != unix.S_IFDIR && !opath {
		return nil, nil
	}
	must := typ == unix.S_IFDIR || opath // cannot be forwarded
	if why := p.unnamed(proc, fd); why != "" {
		if must {
			return nil, staysHome(fd.Link, why)
		}
		return nil, nil // shared takes it
	}
	if !must {
		if p.k.cfg.Outside != nil && p.k.cfg.Outside(&fd.Stat) {
			return nil, nil
		}
		alone, err := p.k.alone(proc, fd)
		if err != nil {
			return nil, &unum.Error{Op: "carry", Pid: proc.Pid, Path: fd.Link, Err: err}
		}
		if !alone {
			return nil, nil
		}
	}
	return &carry.Desc{Kind: "path", Nums: fd.Nums, Flags: fd.Flags, Data: marshal(pathDesc{
		Path: fd.Link, Ino: fd.Stat.Ino, Type: typ, Pos: fd.Pos,
	})}, nil
}

// unnamed says why the name that /proc shows does not lead every node to the
// file, or "".
func (p path) unnamed(proc *carry.Proc, fd *carry.FD) string {
	if !strings.HasPrefix(fd.Link, "/") || strings.HasSuffix(fd.Link, " (deleted)") && fd.Stat.Nlink == 0 {
		return "has no name any more"
	}
	if !p.k.cfg.InTree(fd.Link) {
		return "is not in the shared tree"
	}
	var st unix.Stat_t
	if err := unix.Lstat("/proc/"+strconv.Itoa(proc.HostPid)+"/root"+fd.Link, &st); err != nil {
		return "has no name any more"
	}
	if st.Ino != fd.Stat.Ino || st.Dev != fd.Stat.Dev {
		return "was replaced by another file"
	}
	return ""
}

func inTree(p string) bool {
	for _, own := range []string{"/proc", "/sys", "/dev", "/run/unum"} {
		if p == own || strings.HasPrefix(p, own+"/") {
			return false
		}
	}
	return true
}

func (path) Serve(_ context.Context, _ carry.Placement, _ *carry.Desc, file *os.File) (carry.Home, error) {
	return idle{file}, nil
}

func (p path) ResumeHome(ctx context.Context, pl carry.Placement, d *carry.Desc, file *os.File) (carry.Home, error) {
	return p.Serve(ctx, pl, d, file)
}

func (p path) Land(_ context.Context, _ carry.Placement, d *carry.Desc) (carry.Guest, error) {
	var pd pathDesc
	if err := unmarshal(d.Data, &pd); err != nil {
		return nil, err
	}
	if p.k.cfg.Root != nil {
		var st unix.Stat_t
		if err := unix.Lstat(p.k.cfg.Root()+pd.Path, &st); err != nil {
			return nil, staysHome(pd.Path, "not found here ("+err.Error()+")")
		}
		if err := pd.check(&st); err != nil {
			return nil, err
		}
	}
	return p.guest(d, &pd), nil
}

func (path) guest(d *carry.Desc, pd *pathDesc) carry.Guest {
	flags := d.Flags & reopenFlags
	if flags&unix.O_PATH != 0 {
		flags &= unix.O_PATH | unix.O_DIRECTORY
	}
	if pd.Type == unix.S_IFLNK {
		flags |= unix.O_NOFOLLOW
	}
	return reopened{carry.OpenAt{Path: pd.Path, Flags: flags | unix.O_NOCTTY, Seek: pd.Pos}}
}

func (p path) ResumeGuest(_ context.Context, _ carry.Placement, d *carry.Desc) (carry.Guest, error) {
	var pd pathDesc
	if err := unmarshal(d.Data, &pd); err != nil {
		return nil, err
	}
	return p.guest(d, &pd), nil
}

func (pd *pathDesc) check(st *unix.Stat_t) error {
	if st.Ino != pd.Ino || st.Mode&unix.S_IFMT != pd.Type {
		return staysHome(pd.Path, fmt.Sprintf("is another file here (inode %d, not %d)", st.Ino, pd.Ino))
	}
	return nil
}

// Check says whether what a new process has opened for d, a Desc of any kind
// of this package, is the file that home meant. The error wraps
// unum.ErrStaysHome.
func Check(d *carry.Desc, st *unix.Stat_t) error {
	switch d.Kind {
	case "path":
		var pd pathDesc
		if err := unmarshal(d.Data, &pd); err != nil {
			return err
		}
		return pd.check(st)
	case "device":
		var rdev uint64
		if err := unmarshal(d.Data, &rdev); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != rdev {
			return staysHome(devices[rdev], "is another device here")
		}
	}
	return nil
}
