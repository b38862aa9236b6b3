package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"unum"
)

// FSConfig says where the node's file server is.
type FSConfig struct {
	Log    *slog.Logger
	Socket string // StateDir/fs.sock
	Peer   func(unum.NodeID) (unum.Peer, error)
}

// FS is the daemon's side of the node's file server process. It connects, and
// connects again whenever either side was restarted; it gets the mount from
// it, and passes the ops of bodies on to their homes.
type FS struct {
	cfg  FSConfig
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu    sync.Mutex
	link  *Link         // nil while there is none
	ready chan struct{} // closed while there is one
	mount *os.File
}

// NewFS starts connecting to the file server. It does not wait for it.
func NewFS(cfg FSConfig) *FS {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	f := &FS{cfg: cfg, ready: make(chan struct{})}
	f.ctx, f.stop = context.WithCancel(context.Background())
	f.wg.Add(1)
	go f.run()
	return f
}

// SocketPath is where the file server of a node listens.
func SocketPath(stateDir string) string { return filepath.Join(stateDir, SocketName) }

// Close ends the connection; the mount lives on with its holders.
func (f *FS) Close() error {
	f.stop()
	f.wg.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mount != nil {
		f.mount.Close()
		f.mount = nil
	}
	return nil
}

// Mount waits for the file server and returns a duplicate of the descriptor of
// the mount's root.
func (f *FS) Mount(ctx context.Context) (*os.File, error) {
	if _, err := f.current(ctx); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mount == nil {
		return nil, ErrLinkDown
	}
	return duplicate(f.mount)
}

func (f *FS) run() {
	defer f.wg.Done()
	for f.ctx.Err() == nil {
		if err := f.session(); err != nil {
			f.cfg.Log.Debug("file server", "err", err)
		}
		select {
		case <-f.ctx.Done():
		case <-time.After(20 * time.Millisecond): // it is being started
		}
	}
}

// session runs one connection from the exchange of descriptors to its end.
func (f *FS) session() error {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: f.cfg.Socket, Net: "unix"})
	if err != nil {
		return err
	}
	stop := context.AfterFunc(f.ctx, func() { c.Close() })
	defer stop()
	mount, err := receiveMount(c)
	if err != nil {
		c.Close()
		return err
	}
	link := NewLink(c, f.serve)
	f.mu.Lock()
	if f.mount != nil {
		f.mount.Close()
	}
	f.mount, f.link = mount, link
	close(f.ready)
	f.mu.Unlock()
	<-link.Done()
	f.mu.Lock()
	f.link, f.ready = nil, make(chan struct{})
	f.mu.Unlock()
	link.Close()
	return ErrLinkDown
}

// receiveMount takes the root of the mount from a file server that was just
// connected to.
func receiveMount(c *net.UnixConn) (*os.File, error) {
	_, got, err := RecvFiles(c)
	if err == nil && len(got) != 1 {
		err = fmt.Errorf("file server sent %d descriptors", len(got))
	}
	if err != nil {
		for _, g := range got {
			g.Close()
		}
		return nil, err
	}
	return got[0], nil
}

// Welcome is the byte that comes with the mount.
const Welcome = 'w'

// serve answers the file server's requests.
func (f *FS) serve(ctx context.Context, v Verb, body []byte) ([]byte, error) {
	if v != VerbOp || len(body) < 1 || len(body) < 1+int(body[0]) {
		return nil, fmt.Errorf("verb %d of file server", v)
	}
	home, op := unum.NodeID(body[1:1+body[0]]), body[1+body[0]:]
	peer, err := f.cfg.Peer(home)
	if err == nil {
		var res []byte
		if res, err = peer.Call(ctx, methodOp, op); err == nil {
			return res, nil
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err() // the link is down: nobody hears
	}
	f.cfg.Log.Warn("file operation of a body failed", "node", home, "err", err)
	return (&Result{Errno: unix.EIO}).Encode(), nil
}

func (f *FS) current(ctx context.Context) (*Link, error) {
	for {
		f.mu.Lock()
		link, ready := f.link, f.ready
		f.mu.Unlock()
		if link != nil {
			return link, nil
		}
		select {
		case <-ready:
		case <-ctx.Done():
			return nil, fmt.Errorf("file server is not there: %w", ctx.Err())
		case <-f.ctx.Done():
			return nil, fmt.Errorf("file server: %w", net.ErrClosed)
		}
	}
}

// call asks the file server, again if it is restarted meanwhile: every verb
// may be done twice.
func (f *FS) call(ctx context.Context, v Verb, body []byte) ([]byte, error) {
	for {
		link, err := f.current(ctx)
		if err != nil {
			return nil, err
		}
		b, err := link.Call(ctx, v, body)
		if !errors.Is(err, ErrLinkDown) {
			return b, err
		}
		<-link.Done()
	}
}

// open makes the file of a carried description and opens it.
func (f *FS) open(ctx context.Context, r *Registration, flags int) (*os.File, error) {
	var file *os.File
	err := f.onMount(ctx, func(mnt int) (err error) {
		file, err = openOn(mnt, r, flags)
		return err
	}, func() {
		if file != nil {
			file.Close()
		}
	})
	if err != nil {
		f.call(ctx, VerbForget, marshal(r.Key))
		return nil, err
	}
	return file, nil
}

// onMount runs fn with the mount's root. A call on the mount hangs while no
// file server runs; ctx ends the wait for it. late runs if it succeeds
// afterwards.
func (f *FS) onMount(ctx context.Context, fn func(mnt int) error, late func()) error {
	mnt, err := f.Mount(ctx)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		defer mnt.Close()
		done <- fn(int(mnt.Fd()))
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		go func() {
			if <-done == nil {
				late()
			}
		}()
		return fmt.Errorf("file server does not answer: %w", ctx.Err())
	}
}

func openOn(mnt int, r *Registration, flags int) (*os.File, error) {
	fd, err := unix.Openat(mnt, r.FileName(), flags&^unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open on the private mount: %w", err)
	}
	if !r.Stream && r.Pos != 0 {
		if _, err := unix.Seek(fd, r.Pos, 0); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("set position: %w", err)
		}
	}
	// A body may have it non-blocking; the poller must not learn of that, or
	// it would ask the mount for readiness from within the daemon.
	if flags&unix.O_NONBLOCK != 0 {
		unix.SetNonblock(fd, true)
	}
	return blockingFile(fd, r.Key.String()), nil
}

// settle returns when home knows that the description is closed here, or at
// once if somebody still has it open. The kernel sends a RELEASE behind the
// closing program's back, but before its end is told; a lookup queues behind
// it.
func (f *FS) settle(ctx context.Context, key Key) error {
	return f.onMount(ctx, func(mnt int) error {
		var st unix.Stat_t
		unix.Fstatat(mnt, SettlePrefix+key.String(), &st, unix.AT_SYMLINK_NOFOLLOW)
		return nil
	}, func() {})
}

// handOn tells home the position that the program has left in file, if it
// moved it after its last read or write.
func (f *FS) handOn(ctx context.Context, key Key, file *os.File) error {
	pos, p := int64(0), int64(0)
	err := f.onMount(ctx, func(int) (err error) {
		if pos, err = unix.Seek(int(file.Fd()), 0, io.SeekCurrent); err != nil {
			return err
		}
		p, err = ioctlP(int(file.Fd()))
		return err
	}, func() {})
	if err != nil || pos == p {
		return err
	}
	_, err = f.call(ctx, VerbHandOn, marshal(Position{key, pos}))
	return err
}
