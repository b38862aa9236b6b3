package carry

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"unum"
	"unum/sys"
)

// Set is a node's kinds, in the order in which they are asked.
type Set struct {
	kinds  []Kind
	byName map[string]Kind
}

// NewSet makes one.
func NewSet(kinds ...Kind) *Set {
	s := &Set{kinds: kinds, byName: map[string]Kind{}}
	for _, k := range kinds {
		s.byName[k.Name()] = k
	}
	return s
}

// Kind returns the kind that made a Desc.
func (s *Set) Kind(name string) (Kind, error) {
	if k := s.byName[name]; k != nil {
		return k, nil
	}
	return nil, fmt.Errorf("carry: no kind %q on this node: %w", name, unum.ErrStaysHome)
}

// Describe claims every descriptor that an exec of p would keep. It has no
// side effect. The error wraps unum.ErrStaysHome and names the descriptor that
// cannot be carried.
func (s *Set) Describe(ctx context.Context, p *Proc) ([]*Desc, error) {
	fds, err := scan(p.HostPid)
	if err != nil {
		return nil, err
	}
	var out []*Desc
	for _, fd := range fds {
		d, err := s.claim(ctx, p, fd)
		if err != nil {
			return nil, fmt.Errorf("fd %d is %s: %w", fd.Nums[0], fd.Link, err)
		}
		d.Nums, d.Flags = fd.Nums, fd.Flags
		out = append(out, d)
	}
	return out, nil
}

func (s *Set) claim(ctx context.Context, p *Proc, fd *FD) (*Desc, error) {
	for _, k := range s.kinds {
		d, err := k.Claim(ctx, p, fd)
		if err != nil {
			return nil, err
		}
		if d != nil {
			d.Kind = k.Name()
			return d, nil
		}
	}
	return nil, unum.ErrStaysHome
}

// scan lists the open file descriptions of a process that survive an exec.
func scan(pid int) ([]*FD, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	names, err := sys.ReadDirNames(dir + "/fd")
	if err != nil {
		return nil, err
	}
	var out []*FD
	type id struct{ dev, ino uint64 }
	seen := map[id][]*FD{}
	for _, name := range names {
		num, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		flags, pos, err := fdinfo(dir + "/fdinfo/" + name)
		if err != nil {
			return nil, err
		}
		if flags&unix.O_CLOEXEC != 0 {
			continue
		}
		fd := &FD{Nums: []int{num}, Flags: flags, Pos: pos}
		if fd.Link, err = os.Readlink(dir + "/fd/" + name); err != nil {
			return nil, err
		}
		if err := unix.Stat(dir+"/fd/"+name, &fd.Stat); err != nil {
			return nil, err
		}
		k := id{uint64(fd.Stat.Dev), fd.Stat.Ino}
		if old := same(pid, seen[k], num); old != nil {
			old.Nums = append(old.Nums, num)
			continue
		}
		seen[k] = append(seen[k], fd)
		out = append(out, fd)
	}
	return out, nil
}

// same finds the description that num shares (man 2 kcmp).
func same(pid int, of []*FD, num int) *FD {
	for _, fd := range of {
		if eq, err := sys.KcmpFile(pid, pid, fd.Nums[0], num); err == nil && eq {
			return fd
		}
	}
	return nil
}

func fdinfo(path string) (flags int, pos int64, err error) {
	b, err := sys.ReadProc(path)
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "pos:"); ok {
			pos, err = strconv.ParseInt(strings.TrimSpace(v), 10, 64)
		} else if v, ok := strings.CutPrefix(line, "flags:"); ok {
			var f int64
			f, err = strconv.ParseInt(strings.TrimSpace(v), 8, 64)
			flags = int(f)
			break
		}
		if err != nil {
			return 0, 0, fmt.Errorf("%s: %w", path, err)
		}
	}
	return flags, pos, err
}
