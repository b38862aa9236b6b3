package file

import (
	"context"
	"errors"
	"os"
	"strings"

	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
	"unum/sys"
)

// sharedDesc is Desc.Data of the kinds shared and stream.
type sharedDesc struct {
	Path string // only to name it
	Ino  uint64
	Mode uint32
	Size int64
	Pos  int64
}

// shared carries regular files whose description others share, or that have
// no name to open them by.
type shared struct{ k *Kinds }

func (shared) Name() string { return "shared" }

func (s shared) Claim(_ context.Context, p *carry.Proc, fd *carry.FD) (*carry.Desc, error) {
	if fd.Stat.Mode&unix.S_IFMT != unix.S_IFREG || fd.Flags&unix.O_PATH != 0 {
		return nil, nil
	}
	if s.k.cfg.FS == nil {
		return nil, staysHome(fd.Link, "is shared with other processes")
	}
	if isStream(fd.Link) {
		return nil, staysHome(fd.Link, "is a pipe that several processes read, and was carried here already")
	}
	if fd.Flags&unix.O_DIRECT != 0 {
		return nil, staysHome(fd.Link, "is open for direct I/O and shared with other processes")
	}
	if locked, err := hasRecordLocks(p.HostPid, fd.Nums[0]); err != nil {
		return nil, &unum.Error{Op: "carry", Pid: p.Pid, Path: fd.Link, Err: err}
	} else if locked {
		return nil, staysHome(fd.Link, "is shared and has a record lock of the process")
	}
	return describeShared("shared", fd), nil
}

// isStream says whether a link of /proc/PID/fd is of a pipe on the private mount.
func isStream(link string) bool {
	name, ok := strings.CutPrefix(link, "/")
	if !ok || strings.Contains(name, "/") {
		return false
	}
	key, _, ok := strings.Cut(name, ".")
	if _, err := ParseKey(key); err != nil || !ok {
		return false
	}
	r, err := ParseFileName(name)
	return err == nil && r.Stream
}

func describeShared(kind string, fd *carry.FD) *carry.Desc {
	return &carry.Desc{
		Kind: kind, Nums: fd.Nums,
		Flags: fd.Flags,
		Data:  marshal(sharedDesc{Path: fd.Link, Ino: fd.Stat.Ino, Mode: fd.Stat.Mode, Size: fd.Stat.Size, Pos: fd.Pos}),
	}
}

func (s shared) Serve(_ context.Context, pl carry.Placement, d *carry.Desc, file *os.File) (carry.Home, error) {
	return s.k.serve(pl, d, file, false, false)
}

func (s shared) ResumeHome(_ context.Context, pl carry.Placement, d *carry.Desc, file *os.File) (carry.Home, error) {
	return s.k.serve(pl, d, file, false, true)
}

func (s shared) Land(ctx context.Context, pl carry.Placement, d *carry.Desc) (carry.Guest, error) {
	return s.k.land(ctx, pl, d, false)
}

func (s shared) ResumeGuest(_ context.Context, pl carry.Placement, d *carry.Desc) (carry.Guest, error) {
	return s.k.resumeGuest(pl, d, false)
}

// streamed carries the read ends of pipes that several processes read.
type streamed struct{ k *Kinds }

func (streamed) Name() string { return "stream" }

func (s streamed) Claim(ctx context.Context, p *carry.Proc, fd *carry.FD) (*carry.Desc, error) {
	if fd.Stat.Mode&unix.S_IFMT != unix.S_IFIFO || fd.Flags&(unix.O_PATH|unix.O_ACCMODE) != unix.O_RDONLY {
		return nil, nil
	}
	if f := s.k.cfg.ManyReaders; f != nil {
		if many, err := f(ctx, p, fd); err != nil || !many {
			return nil, err
		}
	}
	if s.k.cfg.FS == nil {
		return nil, staysHome(fd.Link, "has several readers")
	}
	return describeShared("stream", fd), nil
}

func (s streamed) Serve(_ context.Context, pl carry.Placement, d *carry.Desc, file *os.File) (carry.Home, error) {
	return s.k.serve(pl, d, file, true, false)
}

func (s streamed) ResumeHome(_ context.Context, pl carry.Placement, d *carry.Desc, file *os.File) (carry.Home, error) {
	return s.k.serve(pl, d, file, true, true)
}

func (s streamed) Land(ctx context.Context, pl carry.Placement, d *carry.Desc) (carry.Guest, error) {
	return s.k.land(ctx, pl, d, true)
}

func (s streamed) ResumeGuest(_ context.Context, pl carry.Placement, d *carry.Desc) (carry.Guest, error) {
	return s.k.resumeGuest(pl, d, true)
}

func keyOf(pl carry.Placement, d *carry.Desc) Key {
	return Key{Placement: pl.ID, Num: int32(d.Nums[0])}
}

func (k *Kinds) serve(pl carry.Placement, d *carry.Desc, file *os.File, stream, resume bool) (carry.Home, error) {
	s, err := k.home.add(keyOf(pl, d), pl.Guest, file, stream, resume)
	if err != nil {
		file.Close()
		return nil, &unum.Error{Op: "serve " + d.Kind, Pid: pl.Pid, Node: pl.Guest, Err: err}
	}
	return newHomeHalf(k, pl, d.Nums, s), nil
}

func (k *Kinds) land(ctx context.Context, pl carry.Placement, d *carry.Desc, stream bool) (carry.Guest, error) {
	var sd sharedDesc
	if err := unmarshal(d.Data, &sd); err != nil {
		return nil, err
	}
	if k.cfg.FS == nil {
		return nil, staysHome(sd.Path, "has no file server here")
	}
	f, err := k.cfg.FS.open(ctx, &Registration{
		Key: keyOf(pl, d), Home: string(pl.Home), Stream: stream, Mode: sd.Mode, Ino: sd.Ino, Size: sd.Size, Pos: sd.Pos,
	}, d.Flags&(unix.O_ACCMODE|unix.O_APPEND|unix.O_NONBLOCK|unix.O_DSYNC|unix.O_SYNC))
	if err != nil {
		return nil, &unum.Error{Op: "land " + d.Kind, Pid: pl.Pid, Path: sd.Path, Err: err}
	}
	return &guestHalf{k: k, key: keyOf(pl, d), stream: stream, file: f}, nil
}

// guestHalf is carry.Guest of a file on the private mount.
type guestHalf struct {
	k      *Kinds
	key    Key
	stream bool
	file   *os.File // a duplicate of the body's, to read its position; nil once the body has ended
}

// resumeGuest goes on with a body that runs. Its file is duplicated again, so
// that the position is known at its end; if the body has closed it, what its
// children do with the position is theirs.
func (k *Kinds) resumeGuest(pl carry.Placement, d *carry.Desc, stream bool) (carry.Guest, error) {
	if k.cfg.FS == nil {
		return nil, &unum.Error{Op: "resume " + d.Kind, Pid: pl.Pid, Err: unum.ErrNoFeature}
	}
	g := &guestHalf{k: k, key: keyOf(pl, d), stream: stream}
	if stream {
		return g, nil
	}
	pids, err := k.env.WorldPids()
	if err != nil {
		return nil, &unum.Error{Op: "resume " + d.Kind, Pid: pl.Pid, Err: err}
	}
	for _, pid := range pids {
		if p, err := sys.WorldPid(pid); err != nil || p != pl.Pid {
			continue
		}
		if f, err := stolen(pid, d.Nums[0]); err == nil {
			// The link says whose file it is without asking the file server.
			if link, _ := os.Readlink(fdPath(int(f.Fd()))); strings.HasPrefix(link, "/"+g.key.String()+".") {
				g.file = f
			} else {
				f.Close()
			}
		}
		break
	}
	return g, nil
}

// stolen duplicates a descriptor of another process.
func stolen(pid, num int) (*os.File, error) {
	pidfd, err := sys.PidfdOpen(pid)
	if err != nil {
		return nil, err
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, num, 0)
	if err != nil {
		return nil, err
	}
	return blockingFile(fd, "body's file"), nil
}

func (g *guestHalf) Local() carry.Local {
	f, err := duplicate(g.file)
	if err != nil {
		f = g.file // the caller closes it, and with it what knows the position
		g.file = nil
	}
	return carry.Local{File: f}
}

func (g *guestHalf) Started(ok bool) {
	if !ok || g.stream {
		g.drop()
	}
}

func (g *guestHalf) drop() {
	if g.file != nil {
		g.file.Close()
		g.file = nil
	}
}

// Flush hands the body's position on to home. When the body has ended, it
// returns once home has closed what nobody here uses any longer, so that
// locks are free and pipes are broken before anybody learns of the end.
func (g *guestHalf) Flush(ctx context.Context, final bool) error {
	var errs []error
	if g.file != nil && !g.stream {
		errs = append(errs, g.k.cfg.FS.handOn(ctx, g.key, g.file))
	}
	if final {
		g.drop()
		errs = append(errs, g.k.cfg.FS.settle(ctx, g.key))
	}
	return errors.Join(errs...)
}

// Close leaves the file to the children of the body that have it open.
func (g *guestHalf) Close() error {
	g.drop()
	return nil
}

func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	return blockingFile(fd, f.Name()), nil
}

// marshal packs v, one of this package's own types, which always succeeds.
func marshal(v any) []byte {
	b, err := msgpack.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func unmarshal(b []byte, v any) error {
	if err := msgpack.Unmarshal(b, v); err != nil {
		return &unum.Error{Op: "carry file", Err: err}
	}
	return nil
}
