// Package file carries files: devices that are the same everywhere, files and
// directories of the shared tree, files whose open description others share,
// and pipes with several readers.
//
//	kind    what                                        how
//	device  /dev/null, zero, full, random, urandom      reopened by the new process
//	path    file or directory nobody else has open      reopened, position set
//	shared  file whose description others share         FUSE file, forwarded to home
//	stream  pipe with several active readers            FUSE stream, forwarded to home
//
// What is shared by processes on one machine is not the path but the open file
// description: position, flags and locks. A description that others hold is
// therefore left where it is, and the body gets a file of its node's private
// FUSE mount; each call on it becomes an Op that home executes on the
// description itself.
//
// The mount is served by the file server process (package fsnode); the daemon
// only passes its Ops on, so that a body's calls wait and go on when the
// daemon is restarted:
//
//	body → kernel → file server → FS (daemon) → Peer.Call → home's daemon
//
// Positions. home's description has one, and the kernel keeps another for the
// FUSE file. P is what the latter must be if the body has not seeked since its
// last read or write. A read at P means "at home's position"; anything else
// means that the body has seeked, so home is seeked first. pread and pwrite are
// told apart by the system call that the caller sits in.
//
// As on one machine: every write of up to 1 MiB is whole among those of
// others, appends append, the next reader starts where the body stopped. Not
// so: lseek(SEEK_CUR) is stale while a sibling moves the position, st_dev
// differs, shared mappings do not see later writes of other nodes, and a read
// of a pipe that a signal interrupts is not restarted by SA_RESTART (FUSE
// cannot answer ERESTARTSYS).
package file

import (
	"golang.org/x/sys/unix"

	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"unum"
	"unum/carry"
)

// Names of the calls between nodes.
const (
	methodOp   = "carry.file.op"
	methodGone = "carry.file.gone" // Key: answered when the guest has closed it
)

// Config is what the kinds need beside the node's Env.
type Config struct {
	Env *carry.Env
	// FS is the node's file server; nil: nothing is shared, and what would be
	// stays home.
	FS *FS
	// InTree says whether an absolute path of the world lies in the tree that
	// all nodes see. nil: all but /proc, /sys, /dev and /run/unum.
	InTree func(path string) bool
	// Root is the world's root as the daemon reaches it, such as
	// /proc/PID/root. "": the guest checks nothing before the new process
	// opens, and Check is the only proof.
	Root func() string
	// Outside says whether a process outside of the world, which no scan sees,
	// may share the description. nil: none does.
	Outside func(st *unix.Stat_t) bool
	// ManyReaders says whether the read end of a pipe has active readers
	// besides p. nil: every read end that no kind before has claimed.
	ManyReaders func(ctx context.Context, p *carry.Proc, fd *carry.FD) (bool, error)
}

// Kinds are the kinds of this package, which share their state.
type Kinds struct {
	cfg  Config
	env  *carry.Env
	log  *slog.Logger
	home home

	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup
}

// New registers the calls of the room with cfg.Env. Close ends it.
func New(cfg Config) *Kinds {
	k := &Kinds{cfg: cfg, env: cfg.Env, log: cfg.Env.Log, home: home{
		stateDir: cfg.Env.StateDir, keeper: cfg.Env.Keeper, files: map[Key]*served{}, left: map[Key]bool{}, added: make(chan struct{}),
	}}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	if k.cfg.InTree == nil {
		k.cfg.InTree = inTree
	}
	k.home.log = k.log
	k.ctx, k.stop = context.WithCancel(context.Background())
	for _, key := range journals(k.env.StateDir) {
		k.home.left[key] = true
	}
	k.survivors()
	k.env.Handle(methodOp, k.home.handle)
	k.env.Handle(methodGone, k.gone)
	return k
}

// All returns the kinds in the order they should be tried. Kinds of pipes that
// are cheaper than a stream go before the last one.
func (k *Kinds) All() []carry.Kind {
	return []carry.Kind{device{}, path{k}, shared{k}, streamed{k}}
}

// Close stops serving. What bodies elsewhere do waits for a successor, which
// resumes their placements.
func (k *Kinds) Close() error {
	k.stop()
	k.wg.Wait()
	k.home.mu.Lock()
	var all []*served
	for _, s := range k.home.files {
		all = append(all, s)
	}
	k.home.mu.Unlock()
	for _, s := range all {
		k.home.release(s, true)
	}
	return nil
}

// Resumed says that every placement that a predecessor of this daemon knew is
// resumed: what else it served is gone.
func (k *Kinds) Resumed() {
	k.home.mu.Lock()
	defer k.home.mu.Unlock()
	for key := range k.home.left {
		os.Remove(journalPath(k.env.StateDir, key))
	}
	clear(k.home.left)
	close(k.home.added)
	k.home.added = make(chan struct{})
}

func (k *Kinds) background(fn func(ctx context.Context)) {
	k.wg.Add(1)
	go func() {
		defer k.wg.Done()
		fn(k.ctx)
	}()
}

// awaitGuest returns when s was released, its guest has closed it without
// being able to say so, or the guest is lost.
func (k *Kinds) awaitGuest(ctx context.Context, s *served) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		select {
		case <-s.released:
			stop()
		case <-ctx.Done():
		}
	}()
	for ctx.Err() == nil {
		peer, err := k.env.Peer(s.guest)
		if err == nil {
			_, err = peer.Call(ctx, methodGone, marshal(s.key))
		}
		if err == nil || errors.Is(err, unum.ErrNodeLost) || errors.Is(err, unum.ErrNoNode) || errors.Is(err, unum.ErrNoMethod) {
			return
		}
		if ctx.Err() == nil {
			k.log.Warn("asking whether a carried file is still open", "node", s.guest, "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
}

// gone answers home's question whether a description is still open here.
func (k *Kinds) gone(ctx context.Context, from unum.NodeID, req []byte) ([]byte, error) {
	if k.cfg.FS == nil {
		return nil, nil
	}
	if _, err := k.cfg.FS.call(ctx, VerbWait, req); err != nil {
		return nil, fmt.Errorf("file server: %w", err)
	}
	return nil, nil
}

func staysHome(link, why string) error {
	return &unum.Error{Op: "carry", Path: link, Err: fmt.Errorf("%s: %w", why, unum.ErrStaysHome)}
}
