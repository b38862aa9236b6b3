package fsnode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"

	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"unum/carry/file"
)

// server is one file server process.
type server struct {
	cfg   Config
	log   *slog.Logger
	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup
	tab   *table
	files *files
	up    *uplink

	dev   *os.File
	wake  *os.File // eventfd: the device loop shall end
	ended chan error

	mu       sync.Mutex
	inflight map[uint64]*request
	resumed  bool // requests of a predecessor are still to come
}

// request is one request of the kernel that is not answered at once.
type request struct {
	unique      uint64        // as the answer must have it
	id          uint64        // the same for a request that was sent again
	interrupted chan struct{} // a signal has come
	done        chan struct{} // it was answered
	once        sync.Once
	key         file.Key
	home        string
	waiting     bool // may be interrupted at home
	tid         uint32
}

// resendBit marks the unique of a request that is sent again
// (FUSE_UNIQUE_RESEND, include/uapi/linux/fuse.h of Linux 6.9).
const resendBit = 1 << 63

func newServer(cfg Config) (*server, error) {
	tab, err := openTable(cfg.Mount.Memory)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		tab.close()
		return nil, err
	}
	s := &server{
		cfg: cfg, log: cfg.Log, dev: cfg.Mount.Dev, tab: tab, files: newFiles(tab),
		wake: os.NewFile(uintptr(fd), "eventfd"), ended: make(chan error, 1), inflight: map[uint64]*request{},
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.up = newUplink(s.ctx)
	return s, nil
}

func (s *server) close() {
	s.stop()
	s.wg.Wait()
	s.wake.Close()
	s.tab.close()
}

// run serves the mount, and daemons, one after the other, until ctx ends or
// the mount does. The mount goes first: what a daemon that is being killed has
// asked of it ends only with an answer.
func (s *server) run(ctx context.Context) error {
	s.files.load()
	s.resend()
	s.wg.Go(func() { s.ended <- s.loop() })
	defer func() {
		s.stop()
		s.wake.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0})
		<-s.ended
		s.up.set(nil)
	}()
	path := file.SocketPath(s.cfg.StateDir)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false) // a successor may listen there already
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	accepted := make(chan *net.UnixConn)
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			select {
			case accepted <- c:
			case <-s.ctx.Done():
				c.Close()
				return
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-s.ended:
			s.ended <- nil
			return err
		case c := <-accepted:
			if err := s.welcome(c); err != nil {
				s.log.Error("daemon", "err", err)
				c.Close()
			}
		}
	}
}

// welcome gives the mount to a daemon that has connected, and makes its
// connection the one in use.
func (s *server) welcome(c *net.UnixConn) error {
	if err := file.SendFiles(c, file.Welcome, s.cfg.Mount.Root); err != nil {
		return err
	}
	l := file.NewLink(c, s.verb)
	s.up.set(l)
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		<-l.Done()
		s.up.lost(l)
		l.Close()
	}()
	return nil
}

// verb answers the daemon.
func (s *server) verb(ctx context.Context, v file.Verb, body []byte) ([]byte, error) {
	switch v {
	case file.VerbHandOn:
		var p file.Position
		if err := msgpack.Unmarshal(body, &p); err != nil {
			return nil, err
		}
		return nil, s.handOn(&p)
	case file.VerbForget, file.VerbWait:
		var k file.Key
		if err := msgpack.Unmarshal(body, &k); err != nil {
			return nil, err
		}
		n := s.files.keyed(k)
		if n == nil {
			return nil, nil
		}
		if v == file.VerbForget {
			s.forget(n)
			return nil, nil
		}
		select {
		case <-n.released:
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, fmt.Errorf("verb %d of daemon", v)
}

// forget drops a node that was never opened.
func (s *server) forget(n *node) {
	if s.files.opened(n) {
		return
	}
	s.up.do(n.home, &file.Op{Key: n.key, Code: file.OpRelease}, s.ctx.Done())
	s.files.dropNode(n, nil)
}

// handOn sets home's position if the program has moved its own since its last
// read or write.
func (s *server) handOn(p *file.Position) error {
	n := s.files.keyed(p.Key)
	if n == nil {
		return nil
	}
	s.files.mu.Lock()
	h := n.primary
	s.files.mu.Unlock()
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.rec.P == p.Pos {
		return nil
	}
	res := s.up.do(n.home, &file.Op{Key: n.key, Code: file.OpSeek, Off: p.Pos}, s.ctx.Done())
	if res.Errno != 0 {
		return res.Errno
	}
	h.rec.P = p.Pos
	return nil
}
