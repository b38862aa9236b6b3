package cgroup

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/sys"
)

// Usage is an open account of the processor time that a group and the groups
// below it have used, dead members included.
type Usage struct{ fd int }

// Usage opens the account. The error wraps unum.ErrNoFeature where the registry
// is a v1 hierarchy. (cpu.stat of v2 is there without the controller too:
// Linux 5.0.)
func (g *Group) Usage() (*Usage, error) {
	if g.l.registry != g.l.v2 {
		return nil, fmt.Errorf("cpu.stat needs cgroup v2: %w", unum.ErrNoFeature)
	}
	path := filepath.Join(g.Dir(), "cpu.stat")
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &unum.Error{Op: "open cgroup", Path: path, Err: err}
	}
	return &Usage{fd}, nil
}

// Read returns the time used since the group was made. It costs one system
// call.
func (u *Usage) Read() (time.Duration, error) {
	var buf [256]byte
	n, err := sys.RawPread(u.fd, buf[:], 0)
	if err != nil {
		return 0, err
	}
	b, found := bytes.CutPrefix(buf[:n], []byte("usage_usec "))
	end := bytes.IndexByte(b, '\n')
	if !found || end < 0 {
		return 0, unix.EINVAL
	}
	us, err := strconv.ParseInt(string(b[:end]), 10, 64)
	return time.Duration(us) * time.Microsecond, err
}

// Close closes the account.
func (u *Usage) Close() error { return unix.Close(u.fd) }
