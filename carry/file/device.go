package file

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
)

// device carries the memory devices that are the same on every node
// (Documentation/admin-guide/devices.txt).
type device struct{}

var devices = map[uint64]string{
	unix.Mkdev(1, 3): "/dev/null",
	unix.Mkdev(1, 5): "/dev/zero",
	unix.Mkdev(1, 7): "/dev/full",
	unix.Mkdev(1, 8): "/dev/random",
	unix.Mkdev(1, 9): "/dev/urandom",
}

// reopenFlags are the flags of an open description that an open sets again.
const reopenFlags = unix.O_ACCMODE | unix.O_APPEND | unix.O_NONBLOCK | unix.O_DSYNC | unix.O_SYNC |
	unix.O_DIRECT | unix.O_DIRECTORY | unix.O_NOATIME | unix.O_PATH

func (device) Name() string { return "device" }

func (device) Claim(_ context.Context, _ *carry.Proc, fd *carry.FD) (*carry.Desc, error) {
	if fd.Stat.Mode&unix.S_IFMT != unix.S_IFCHR || devices[fd.Stat.Rdev] == "" {
		return nil, nil
	}
	return &carry.Desc{Kind: "device", Nums: fd.Nums, Flags: fd.Flags, Data: marshal(fd.Stat.Rdev)}, nil
}

func (device) Serve(_ context.Context, _ carry.Placement, _ *carry.Desc, file *os.File) (carry.Home, error) {
	return idle{file}, nil
}

func (d device) ResumeHome(ctx context.Context, pl carry.Placement, desc *carry.Desc, file *os.File) (carry.Home, error) {
	return d.Serve(ctx, pl, desc, file)
}

func (device) Land(_ context.Context, _ carry.Placement, d *carry.Desc) (carry.Guest, error) {
	var rdev uint64
	if err := unmarshal(d.Data, &rdev); err != nil {
		return nil, err
	}
	p := devices[rdev]
	if p == "" {
		return nil, &unum.Error{Op: "carry", Path: "device", Err: unum.ErrStaysHome}
	}
	return reopened{carry.OpenAt{Path: p, Flags: d.Flags&reopenFlags | unix.O_NOCTTY}}, nil
}

func (d device) ResumeGuest(ctx context.Context, pl carry.Placement, desc *carry.Desc) (carry.Guest, error) {
	return d.Land(ctx, pl, desc)
}

// idle is the home half of what is reopened: there is nothing to do.
type idle struct{ file *os.File }

func (i idle) Commit()                     {}
func (i idle) Drain(context.Context) error { return nil }
func (i idle) Close() error                { return i.file.Close() }

// reopened is the guest's half of what the new process opens itself.
type reopened struct{ at carry.OpenAt }

func (r reopened) Local() carry.Local                { return carry.Local{Open: &r.at} }
func (r reopened) Started(bool)                      {}
func (r reopened) Flush(context.Context, bool) error { return nil }
func (r reopened) Close() error                      { return nil }
