package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"unum"
)

// Client asks the daemon behind one control socket. Each request makes a
// connection of its own, so a Client holds nothing and needs no Close.
type Client struct {
	Path string // of the socket
	// Patience is how long a request waits for a daemon that is not there: it
	// may be starting or restarting. 0: not at all.
	Patience time.Duration
}

// Dial returns a client of the cluster that Find chooses.
func Dial(cluster, via string) (*Client, error) {
	path, err := Find(cluster, via)
	if err != nil {
		return nil, err
	}
	return &Client{Path: path, Patience: 5 * time.Second}, nil
}

// dial connects, waiting for the daemon as long as Patience allows.
func (cl *Client) dial(ctx context.Context) (*conn, error) {
	until := time.Now().Add(cl.Patience)
	for {
		var d net.Dialer
		uc, err := d.DialContext(ctx, "unix", cl.Path)
		if err == nil {
			return newConn(uc.(*net.UnixConn)), nil
		}
		if errors.Is(err, fs.ErrPermission) || time.Now().After(until) || ctx.Err() != nil {
			var errno syscall.Errno
			if errors.As(err, &errno) {
				err = errno
			}
			return nil, fmt.Errorf("the daemon does not answer at %s: %w", cl.Path, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// ask sends a request and returns the connection on which its answers come.
func (cl *Client) ask(ctx context.Context, op string, body any, files ...*os.File) (*conn, error) {
	c, err := cl.dial(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.send(&message{Op: op, Proto: Protocol}, body, files...); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// recvAnswer is recv with the daemon's refusal as an error.
func (c *conn) recvAnswer() (*message, []*os.File, error) {
	m, files, err := c.recv()
	if err == nil && m.Op == opError && m.Err != nil {
		return nil, nil, &remoteError{*m.Err}
	}
	return m, files, err
}

// get is a request with one answer. A daemon that dies over a question that
// changes nothing is asked again.
func get[T any](ctx context.Context, cl *Client, op string, body any) (T, error) {
	var v T
	until := time.Now().Add(cl.Patience)
	for {
		err := getOnce(ctx, cl, op, body, &v)
		if errors.Is(err, errLost) && time.Now().Before(until) && ctx.Err() == nil {
			continue
		}
		return v, err
	}
}

// errLost means that the daemon went away before it answered.
var errLost = errors.New("the daemon went away")

func getOnce(ctx context.Context, cl *Client, op string, body, v any) error {
	c, err := cl.ask(ctx, op, body)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	m, _, err := c.recvAnswer()
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return lost(err)
	}
	if len(m.Body) == 0 {
		return nil // a nil, such as the list of a daemon that knows no nodes yet
	}
	return msgpack.Unmarshal(m.Body, v)
}

// lost turns the ways in which a connection ends into errLost.
func lost(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return errLost
	}
	return err
}

// Nodes lists the members of the cluster.
func (cl *Client) Nodes(ctx context.Context) ([]Node, error) {
	return get[[]Node](ctx, cl, "nodes", nil)
}

// CheckNode says whether a node of that name can take a process; a daemon that
// has just started waits for a node that is on its way.
func (cl *Client) CheckNode(ctx context.Context, id unum.NodeID) error {
	_, err := get[struct{}](ctx, cl, "node", id)
	return err
}

// Ps lists the processes of the cluster.
func (cl *Client) Ps(ctx context.Context) ([]Proc, error) {
	return get[[]Proc](ctx, cl, "ps", nil)
}

// Why explains the place of a process.
func (cl *Client) Why(ctx context.Context, pid unum.Pid) (*Why, error) {
	return get[*Why](ctx, cl, "why", pidRequest{Pid: pid})
}

// Logs returns a piece of a detached process's output, from offset.
func (cl *Client) Logs(ctx context.Context, pid unum.Pid, offset int64) (*LogChunk, error) {
	return get[*LogChunk](ctx, cl, "logs", pidRequest{Pid: pid, Offset: offset})
}
