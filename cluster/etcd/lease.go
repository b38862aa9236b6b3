package etcd

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"unum"
	"unum/cluster"
)

// waitGroup is a sync.WaitGroup that takes nobody after close.
type waitGroup struct {
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

func (w *waitGroup) start(f func()) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.wg.Go(f)
	}
	return !w.closed
}

func (w *waitGroup) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.wg.Wait()
}

// Watch implements cluster.Store.
func (s *Store) Watch(ctx context.Context) (<-chan []unum.NodeInfo, error) {
	first, done := s.bound(ctx)
	t, err := s.snapshot(first)
	done()
	if err != nil {
		return nil, s.fail("watch nodes", "", err)
	}
	ch := make(chan []unum.NodeInfo, 1)
	ch <- t.Nodes()
	ok := s.wg.start(func() {
		defer close(ch)
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		defer context.AfterFunc(s.ctx, stop)()
		s.follow(ctx, t, func(t *cluster.Table) {
			select {
			case <-ch:
			default:
			}
			ch <- t.Nodes()
		})
	})
	if !ok {
		return nil, s.fail("watch nodes", "", cluster.ErrClosed)
	}
	return ch, nil
}

// follow keeps t up to date and calls changed after each change, until ctx
// ends.
func (s *Store) follow(ctx context.Context, t *snapshot, changed func(*cluster.Table)) {
	for ctx.Err() == nil {
		s.followOnce(ctx, t, changed)
		// The history was compacted away, or etcd went: begin anew.
		for ctx.Err() == nil {
			one, done := s.bound(ctx)
			now, err := s.snapshot(one)
			done()
			if err == nil {
				*t = *now
				changed(t.Table)
				break
			}
			s.cfg.Log.Debug("membership cannot be read", "err", err)
			pause(ctx, 100*time.Millisecond)
		}
	}
}

func (s *Store) followOnce(ctx context.Context, t *snapshot, changed func(*cluster.Table)) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	for res := range s.cl.Watch(ctx, memberPrefix, clientv3.WithPrefix(), clientv3.WithRev(t.rev+1)) {
		if err := res.Err(); err != nil {
			s.cfg.Log.Debug("watch ended", "err", err)
			return
		}
		for _, ev := range res.Events {
			if err := t.apply(ev.Kv, ev.Type == clientv3.EventTypeDelete); err != nil {
				s.cfg.Log.Warn("membership holds what cannot be read", "err", err)
			}
		}
		t.rev = res.Header.Revision
		if len(res.Events) > 0 {
			changed(t.Table)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// Register implements cluster.Store.
func (s *Store) Register(ctx context.Context, g cluster.Registration) (cluster.Lease, error) {
	ctx, done := s.bound(ctx)
	defer done()
	var grant *clientv3.LeaseGrantResponse
	err := s.patiently(ctx, func() (err error) {
		grant, err = s.cl.Grant(ctx, ttlSeconds(s.cfg.TTL))
		return err
	})
	if err != nil {
		return nil, s.fail("register", g.ID, err)
	}
	l := &lease{s: s, id: grant.ID, lost: make(chan struct{}), ended: make(chan struct{})}
	err = s.update(ctx, func(t *cluster.Table) ([]clientv3.Op, error) {
		r, err := t.Register(g)
		if err != nil {
			return nil, err
		}
		l.record, l.info = r, t.Info(r)
		put, err := putRow(r)
		alive := clientv3.OpPut(alivePrefix+string(r.ID), strconv.FormatUint(uint64(r.Incarnation), 10), clientv3.WithLease(grant.ID))
		return []clientv3.Op{put, alive}, err
	})
	var t *snapshot
	if err == nil {
		t, err = s.snapshot(ctx)
	}
	if err != nil {
		s.cl.Revoke(ctx, grant.ID)
		return nil, s.fail("register", g.ID, err)
	}
	var life context.Context
	life, l.stop = context.WithCancelCause(s.ctx)
	if !s.wg.start(func() { l.renew(life, t) }) {
		l.stop(nil)
		return nil, s.fail("register", g.ID, cluster.ErrClosed)
	}
	return l, nil
}

// lease implements cluster.Lease.
type lease struct {
	s      *Store
	id     clientv3.LeaseID
	record cluster.Record
	info   unum.NodeInfo
	stop   context.CancelCauseFunc
	lost   chan struct{}
	ended  chan struct{} // after lost: nothing runs any more

	mu  sync.Mutex
	err error
}

var errRanOut = errors.New("the lease ran out")

// renew ends when the lease is no longer held. It gives the lease up a tenth of
// its time before the voter does, so that this node has stopped what it must
// not do without a lease when others are told that it has none.
func (l *lease) renew(ctx context.Context, t *snapshot) {
	defer close(l.ended)
	held, stop := context.WithCancel(ctx)
	defer stop()
	var watch sync.WaitGroup
	watch.Go(func() {
		check := func(t *cluster.Table) {
			if err := t.Holds(l.record); err != nil {
				l.stop(err)
			}
		}
		check(t.Table)
		l.s.follow(ctx, t, check)
	})
	ttl := time.Duration(ttlSeconds(l.s.cfg.TTL)) * time.Second
	limit := time.AfterFunc(ttl-ttl/10, stop)
	for held.Err() == nil {
		asked := time.Now()
		switch yes, err := l.ask(held); {
		case err != nil:
			pause(held, 50*time.Millisecond)
		case !yes:
			stop()
		case limit.Stop():
			limit.Reset(time.Until(asked.Add(ttl - ttl/10)))
			pause(held, ttl/5)
		}
	}
	limit.Stop()
	l.stop(errRanOut) // unless there was another reason before
	watch.Wait()
	err := context.Cause(ctx)
	if l.s.ctx.Err() != nil {
		err = cluster.ErrClosed
	}
	l.mu.Lock()
	l.err = err
	l.mu.Unlock()
	close(l.lost)
}

// ask renews the lease once. The client's own KeepAlive would wait for up to a
// second after the voter is back, and a third of the lease between two: a voter
// whose daemon dies again and again is not there for so long.
func (l *lease) ask(ctx context.Context) (held bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, askMax)
	defer cancel()
	stream, err := etcdserverpb.NewLeaseClient(l.s.cl.ActiveConnection()).LeaseKeepAlive(ctx, grpc.WaitForReady(true))
	if err != nil {
		return false, err
	}
	if err := stream.Send(&etcdserverpb.LeaseKeepAliveRequest{ID: int64(l.id)}); err != nil {
		return false, err
	}
	res, err := stream.Recv()
	if err != nil {
		return false, err
	}
	return res.TTL > 0, nil
}

// askMax is how long an answer may take; then it is asked again.
const askMax = time.Second

func (l *lease) Node() unum.NodeInfo   { return l.info }
func (l *lease) Lost() <-chan struct{} { return l.lost }

func (l *lease) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func (l *lease) Close() error {
	l.stop(cluster.ErrClosed)
	<-l.ended
	return nil
}
