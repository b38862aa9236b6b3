package ctl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"

	"github.com/vmihailenco/msgpack/v5"

	"unum"
)

// ServerConfig says what a Server needs.
type ServerConfig struct {
	Path    string    // of the socket; its directory exists
	Backend Backend   // the daemon
	Logs    *LogStore // output of detached processes
	Log     *slog.Logger
}

// Server answers on the control socket. Create it with Listen; Close ends it
// and waits for its goroutines. Processes that it started live on.
type Server struct {
	cfg    ServerConfig
	log    *slog.Logger
	ln     *net.UnixListener
	ctx    context.Context // of the server's life, handed to its goroutines
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	followed map[unum.Pid]int // clients that are told how it ends
}

// Listen opens the socket, in place of one that a predecessor left, and serves
// it in the background.
func Listen(cfg ServerConfig) (*Server, error) {
	s := &Server{cfg: cfg, log: cfg.Log, followed: map[unum.Pid]int{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	// Bound under another name and renamed, so that a client never meets a
	// socket which does not answer yet.
	tmp := cfg.Path + ".new"
	os.Remove(tmp)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, &unum.Error{Op: "listen", Path: cfg.Path, Err: err}
	}
	ln.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(tmp, 0o666), os.Rename(tmp, cfg.Path)); err != nil {
		ln.Close()
		os.Remove(tmp)
		return nil, &unum.Error{Op: "listen", Path: cfg.Path, Err: err}
	}
	s.ln = ln
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.resume()
	s.wg.Add(1)
	go s.accept()
	return s, nil
}

// Close stops serving. The socket stays in the file system: a client that
// connects before the next daemon is there is refused and tries again.
func (s *Server) Close() error {
	err := s.ln.Close()
	s.cancel()
	s.wg.Wait()
	return err
}

func (s *Server) accept() {
	defer s.wg.Done()
	for {
		uc, err := s.ln.AcceptUnix()
		if err != nil {
			if s.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			s.log.Warn("control socket: accept", "err", err)
			continue
		}
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			s.serve(uc)
		}()
	}
}

// serve answers the one request of a connection.
func (s *Server) serve(uc *net.UnixConn) {
	c := newConn(uc)
	defer c.discard()
	defer c.Close()
	stop := context.AfterFunc(s.ctx, func() { c.Close() })
	defer stop()

	m, files, err := c.recv()
	if err != nil {
		return // a client that only looked whether we live
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err := s.answer(c, m, files); err != nil {
		c.send(&message{Op: opError, Err: toWire(err)}, nil)
	}
}

// request decodes the body of a request.
func request[T any](m *message) (T, error) {
	var v T
	if err := msgpack.Unmarshal(m.Body, &v); err != nil {
		return v, fmt.Errorf("%s: bad request: %w", m.Op, err)
	}
	return v, nil
}

type pidRequest struct {
	Pid    unum.Pid
	Offset int64 `msgpack:",omitempty"` // logs
}

func (s *Server) answer(c *conn, m *message, files []*os.File) error {
	if m.Proto != Protocol {
		return fmt.Errorf("this command speaks version %d of the control protocol, the daemon (unum %s) version %d: %w",
			m.Proto, unum.Version, Protocol, unum.ErrVersion)
	}
	caller, err := callerOf(c.uc)
	if err != nil {
		return err
	}
	// What only reads ends when its client goes; a run is not a read.
	ctx, b := s.ctx, s.cfg.Backend
	switch m.Op {
	case "run":
		req, err := request[RunRequest](m)
		if err != nil {
			return err
		}
		return s.run(ctx, c, caller, &req, files)
	case "wait":
		req, err := request[pidRequest](m)
		if err != nil {
			return err
		}
		return s.follow(ctx, c, caller, req.Pid)
	case "nodes":
		v, err := b.Nodes(ctx, caller)
		return reply(c, v, err)
	case "node": // as package first writes it
		req, err := request[unum.NodeID](m)
		if err != nil {
			return err
		}
		return reply(c, nil, b.CheckNode(ctx, req))
	case "ps":
		v, err := b.Ps(ctx, caller)
		return reply(c, v, err)
	case "why":
		req, err := request[pidRequest](m)
		if err != nil {
			return err
		}
		v, err := b.Why(ctx, caller, req.Pid)
		return reply(c, v, err)
	case "logs":
		req, err := request[pidRequest](m)
		if err != nil {
			return err
		}
		v, err := s.logs(ctx, caller, req)
		return reply(c, v, err)
	}
	return fmt.Errorf("%s: %w", m.Op, unum.ErrNoMethod)
}

func reply(c *conn, v any, err error) error {
	if err != nil {
		return err
	}
	return c.send(&message{Op: opOK}, v)
}

func (s *Server) logs(ctx context.Context, caller Caller, req pidRequest) (*LogChunk, error) {
	if s.cfg.Logs != nil {
		v, err := s.cfg.Logs.Read(caller, req.Pid, req.Offset)
		if !errors.Is(err, unum.ErrNoProcess) {
			return v, err
		}
	}
	return s.cfg.Backend.Logs(ctx, caller, req.Pid, req.Offset)
}
