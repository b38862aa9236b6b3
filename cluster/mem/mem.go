// Package mem keeps a cluster's membership in memory: the twin of
// cluster/etcd for tests of other rooms. One World is what all nodes share;
// each node's Store can be closed by itself.
package mem

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"strings"
	"sync"
	"time"

	"unum"
	"unum/cluster"
)

// World is the shared part.
type World struct {
	ttl time.Duration

	mu       sync.Mutex
	table    *cluster.Table
	expiry   map[unum.NodeID]*time.Timer
	keys     map[string]cluster.Entry
	rev      cluster.Revision
	watchers map[chan []unum.NodeInfo]struct{}
	leases   map[*lease]struct{}
}

// NewWorld makes an empty cluster. ttl 0 is cluster.LeaseTTL.
func NewWorld(ttl time.Duration) *World {
	if ttl == 0 {
		ttl = cluster.LeaseTTL
	}
	return &World{
		ttl: ttl, table: cluster.NewTable(), expiry: map[unum.NodeID]*time.Timer{},
		keys: map[string]cluster.Entry{}, watchers: map[chan []unum.NodeInfo]struct{}{},
		leases: map[*lease]struct{}{},
	}
}

// Store returns one node's access.
func (w *World) Store() *Store {
	s := &Store{w: w}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// changed tells watchers and leases. mu is held.
func (w *World) changed() {
	nodes := w.table.Nodes()
	for ch := range w.watchers {
		post(ch, nodes)
	}
	for l := range w.leases {
		if err := w.table.Holds(l.record); err != nil {
			l.end(err)
		}
	}
}

// post replaces what a slow watcher has not taken.
func post(ch chan []unum.NodeInfo, nodes []unum.NodeInfo) {
	select {
	case <-ch:
	default:
	}
	ch <- append([]unum.NodeInfo(nil), nodes...)
}

// arm lets the lease of a node run out after the TTL. mu is held.
func (w *World) arm(r cluster.Record) {
	if t := w.expiry[r.ID]; t != nil {
		t.Stop()
	}
	w.expiry[r.ID] = time.AfterFunc(w.ttl, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		for l := range w.leases {
			if l.record == r {
				return // renewed all the time
			}
		}
		if w.table.Alive[r.ID] && w.table.Holds(r) == nil {
			delete(w.table.Alive, r.ID)
			w.changed()
		}
	})
}

// Store is one node's access to a World. It implements cluster.Store.
type Store struct {
	w      *World
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

var _ cluster.Store = (*Store)(nil)

// begin locks the world for one operation.
func (s *Store) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.w.mu.Lock()
	if s.ctx.Err() != nil {
		s.w.mu.Unlock()
		return cluster.ErrClosed
	}
	return nil
}

func failed(op string, id unum.NodeID, err error) error {
	if err == nil {
		return nil
	}
	return &unum.Error{Op: op, Node: id, Err: err}
}

// Register implements cluster.Store.
func (s *Store) Register(ctx context.Context, g cluster.Registration) (cluster.Lease, error) {
	if err := s.begin(ctx); err != nil {
		return nil, failed("register", g.ID, err)
	}
	defer s.w.mu.Unlock()
	r, err := s.w.table.Register(g)
	if err != nil {
		return nil, failed("register", g.ID, err)
	}
	l := &lease{s: s, record: r, info: s.w.table.Info(r), lost: make(chan struct{})}
	s.w.changed()
	s.w.leases[l] = struct{}{}
	if t := s.w.expiry[r.ID]; t != nil {
		t.Stop()
	}
	return l, nil
}

// Nodes implements cluster.Store.
func (s *Store) Nodes(ctx context.Context) ([]unum.NodeInfo, error) {
	if err := s.begin(ctx); err != nil {
		return nil, failed("list nodes", "", err)
	}
	defer s.w.mu.Unlock()
	return s.w.table.Nodes(), nil
}

// Watch implements cluster.Store.
func (s *Store) Watch(ctx context.Context) (<-chan []unum.NodeInfo, error) {
	if err := s.begin(ctx); err != nil {
		return nil, failed("watch nodes", "", err)
	}
	defer s.w.mu.Unlock()
	ch := make(chan []unum.NodeInfo, 1)
	s.w.watchers[ch] = struct{}{}
	post(ch, s.w.table.Nodes())
	s.wg.Go(func() {
		select {
		case <-ctx.Done():
		case <-s.ctx.Done():
		}
		s.w.mu.Lock()
		defer s.w.mu.Unlock()
		delete(s.w.watchers, ch)
		close(ch)
	})
	return ch, nil
}

// SetState implements cluster.Store.
func (s *Store) SetState(ctx context.Context, id unum.NodeID, epoch unum.Epoch, state unum.NodeState) error {
	err := s.begin(ctx)
	if err == nil {
		defer s.w.mu.Unlock()
		if _, err = s.w.table.SetState(id, epoch, state); err == nil {
			s.w.changed()
		}
	}
	return failed("set state", id, err)
}

// DeclareDown implements cluster.Store.
func (s *Store) DeclareDown(ctx context.Context, seen unum.NodeInfo) (unum.Epoch, error) {
	if err := s.begin(ctx); err != nil {
		return 0, failed("declare down", seen.ID, err)
	}
	defer s.w.mu.Unlock()
	r, changed, err := s.w.table.DeclareDown(seen)
	if changed {
		s.w.changed()
	}
	return r.Epoch, failed("declare down", seen.ID, err)
}

// Release implements cluster.Store.
func (s *Store) Release(ctx context.Context, id unum.NodeID) error {
	err := s.begin(ctx)
	if err == nil {
		defer s.w.mu.Unlock()
		if _, _, err = s.w.table.Release(id); err == nil {
			s.w.changed()
		}
	}
	return failed("release", id, err)
}

// Get implements cluster.Store.
func (s *Store) Get(ctx context.Context, key string) ([]byte, cluster.Revision, error) {
	if err := s.begin(ctx); err != nil {
		return nil, 0, failed("get "+key, "", err)
	}
	defer s.w.mu.Unlock()
	e, ok := s.w.keys[key]
	if !ok {
		return nil, 0, failed("get "+key, "", fs.ErrNotExist)
	}
	return append([]byte{}, e.Value...), e.Revision, nil
}

// Swap implements cluster.Store.
func (s *Store) Swap(ctx context.Context, key string, old cluster.Revision, value []byte) (cluster.Revision, error) {
	if err := s.begin(ctx); err != nil {
		return 0, failed("set "+key, "", err)
	}
	defer s.w.mu.Unlock()
	if now := s.w.keys[key].Revision; now != old {
		return 0, failed("set "+key, "", fmt.Errorf("%w: revision %d, not %d", cluster.ErrConflict, now, old))
	}
	s.w.rev++
	if value == nil {
		delete(s.w.keys, key)
	} else {
		s.w.keys[key] = cluster.Entry{Value: append([]byte{}, value...), Revision: s.w.rev}
	}
	return s.w.rev, nil
}

// List implements cluster.Store.
func (s *Store) List(ctx context.Context, prefix string) (map[string]cluster.Entry, error) {
	if err := s.begin(ctx); err != nil {
		return nil, failed("list "+prefix, "", err)
	}
	defer s.w.mu.Unlock()
	out := maps.Clone(s.w.keys)
	maps.DeleteFunc(out, func(k string, _ cluster.Entry) bool { return !strings.HasPrefix(k, prefix) })
	return out, nil
}

// Close implements cluster.Store.
func (s *Store) Close() error {
	s.cancel()
	s.w.mu.Lock()
	for l := range s.w.leases {
		if l.s == s {
			l.end(cluster.ErrClosed)
			s.w.arm(l.record)
		}
	}
	s.w.mu.Unlock()
	s.wg.Wait()
	return nil
}

// lease implements cluster.Lease. In memory it is renewed by being there.
type lease struct {
	s      *Store
	record cluster.Record
	info   unum.NodeInfo
	lost   chan struct{}
	err    error // guarded by World.mu
}

// end closes Lost. World.mu is held.
func (l *lease) end(err error) {
	if _, ok := l.s.w.leases[l]; ok {
		delete(l.s.w.leases, l)
		l.err = err
		close(l.lost)
	}
}

func (l *lease) Node() unum.NodeInfo   { return l.info }
func (l *lease) Lost() <-chan struct{} { return l.lost }

func (l *lease) Err() error {
	l.s.w.mu.Lock()
	defer l.s.w.mu.Unlock()
	return l.err
}

func (l *lease) Close() error {
	l.s.w.mu.Lock()
	defer l.s.w.mu.Unlock()
	if _, ok := l.s.w.leases[l]; ok {
		l.end(cluster.ErrClosed)
		l.s.w.arm(l.record)
	}
	return nil
}
