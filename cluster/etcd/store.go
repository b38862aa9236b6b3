// Package etcd keeps a cluster's membership in etcd: embedded in the daemon of
// a voter, or reached at one. It implements cluster.Store.
//
// Keys, all under "unum/":
//
//	m/guard     changed by every change of the membership, so that the rules of
//	            cluster.Table see one state and apply to it
//	m/row/NN    the record of index NN, msgpack
//	m/alive/ID  the incarnation; bound to the node's lease
//	k/KEY       the keys of Swap
//
// etcd listens on unix sockets only. Other nodes reach it through the node's
// one port, which ends mutual TLS and pipes to the socket.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/vmihailenco/msgpack/v5"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"unum"
	"unum/cluster"
)

// ClientALPN marks, at a node's port, connections for the voter's client
// socket.
const ClientALPN = "unum-etcd"

const (
	memberPrefix = "unum/m/"
	guardKey     = memberPrefix + "guard"
	rowPrefix    = memberPrefix + "row/"
	alivePrefix  = memberPrefix + "alive/"
	keyPrefix    = "unum/k/"
)

// opMax bounds an operation whose context has no deadline.
const opMax = 5 * time.Second

// Config says where a store lives.
type Config struct {
	Node unum.NodeID
	// Voter starts etcd in this process, with its data in Dir and its sockets
	// in Sockets, both made 0700.
	Voter   bool
	Dir     string
	Sockets string
	Addr    string // host:port of the node, advertised
	Fast    bool   // for play: no fsync, quick elections

	// Who is no voter reaches these through Dial.
	Voters []unum.NodeID
	Dial   func(ctx context.Context, voter unum.NodeID) (net.Conn, error)

	TTL time.Duration // of leases; 0 is cluster.LeaseTTL
	Log *slog.Logger  // nil discards
}

// Store implements cluster.Store.
type Store struct {
	cfg    Config
	server *server // nil for clients
	cl     *clientv3.Client
	ctx    context.Context // of watches and renewals
	cancel context.CancelFunc
	wg     waitGroup
}

var _ cluster.Store = (*Store)(nil)

// Open starts the voter, or makes a client; the latter does not wait for a
// connection.
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.TTL == 0 {
		c.TTL = cluster.LeaseTTL
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{cfg: c}
	var err error
	if c.Voter {
		// Not etcd's in-process client: its watch stream can lock up for good
		// when a watch is cancelled while events come (both ends of the
		// unbuffered pair then send; server/proxy/grpcproxy/adapter).
		if s.server, err = startServer(ctx, c); err == nil {
			own := c
			own.Voters = []unum.NodeID{c.Node}
			own.Dial = func(ctx context.Context, _ unum.NodeID) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", c.ClientSocket())
			}
			s.cl, err = dialClient(own)
		}
	} else {
		s.cl, err = dialClient(c)
	}
	if err != nil {
		return nil, failed("open coordination store", c.Node, err)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

func dialClient(c Config) (*clientv3.Client, error) {
	if len(c.Voters) == 0 || c.Dial == nil {
		return nil, errors.New("no voter to connect to")
	}
	var endpoints []string
	for _, v := range c.Voters {
		endpoints = append(endpoints, "http://"+string(v))
	}
	return clientv3.New(clientv3.Config{
		Endpoints:            endpoints,
		DialKeepAliveTime:    2 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		Logger:               zap.New(&slogCore{log: c.Log}),
		DialOptions: []grpc.DialOption{
			grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
				return c.Dial(ctx, unum.NodeID(addr))
			}),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 300 * time.Millisecond},
				MinConnectTimeout: 2 * time.Second,
			}),
		},
	})
}

// Close implements cluster.Store. A voter's etcd ends with it.
func (s *Store) Close() error {
	s.cancel()
	s.wg.close()
	err := s.cl.Close()
	if s.server != nil {
		s.server.stop()
	}
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return failed("close coordination store", s.cfg.Node, err)
}

// bound gives an operation its time, and ends it with the store.
func (s *Store) bound(ctx context.Context) (context.Context, func()) {
	cancel := func() {}
	if _, ok := ctx.Deadline(); !ok {
		ctx, cancel = context.WithTimeout(ctx, opMax)
	}
	ctx, cancelCause := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.ctx, func() { cancelCause(cluster.ErrClosed) })
	return ctx, func() { stop(); cancelCause(nil); cancel() }
}

func (s *Store) fail(op string, id unum.NodeID, err error) error {
	if err != nil && s.ctx.Err() != nil {
		err = cluster.ErrClosed
	}
	return failed(op, id, err)
}

// snapshot is the membership at one revision.
type snapshot struct {
	*cluster.Table
	guard int64 // mod revision of the guard key
	rev   int64
}

func (s *Store) snapshot(ctx context.Context) (*snapshot, error) {
	res, err := s.cl.Get(ctx, memberPrefix, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	t := &snapshot{Table: cluster.NewTable(), rev: res.Header.Revision}
	for _, kv := range res.Kvs {
		if err := t.apply(kv, false); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// apply takes one key into the table.
func (t *snapshot) apply(kv *mvccpb.KeyValue, deleted bool) error {
	key := string(kv.Key)
	switch {
	case key == guardKey:
		t.guard = kv.ModRevision
	case strings.HasPrefix(key, alivePrefix):
		id := unum.NodeID(key[len(alivePrefix):])
		if deleted {
			delete(t.Alive, id)
		} else {
			t.Alive[id] = true
		}
	case strings.HasPrefix(key, rowPrefix):
		var i int
		if _, err := fmt.Sscanf(key[len(rowPrefix):], "%d", &i); err != nil {
			return fmt.Errorf("key %s: %w", key, err)
		}
		if deleted {
			delete(t.Rows, unum.NodeIndex(i))
			return nil
		}
		var r cluster.Record
		if err := msgpack.Unmarshal(kv.Value, &r); err != nil {
			return fmt.Errorf("key %s: %w", key, err)
		}
		t.Rows[unum.NodeIndex(i)] = r
	}
	return nil
}

func rowKey(r cluster.Record) string { return fmt.Sprintf("%s%02d", rowPrefix, r.Index) }

func putRow(r cluster.Record) (clientv3.Op, error) {
	b, err := msgpack.Marshal(&r)
	return clientv3.OpPut(rowKey(r), string(b)), err
}

// update applies f to the membership in one transaction. f is called again if
// somebody else was faster, or the voter is not there for a moment: what the
// rules have done already they do again without harm. No operations are
// nothing to do.
func (s *Store) update(ctx context.Context, f func(t *cluster.Table) ([]clientv3.Op, error)) error {
	for done := false; !done; {
		err := s.patiently(ctx, func() error {
			t, err := s.snapshot(ctx)
			if err != nil {
				return err
			}
			ops, err := f(t.Table)
			if err != nil || len(ops) == 0 {
				done = true
				return err
			}
			res, err := s.cl.Txn(ctx).
				If(clientv3.Compare(clientv3.ModRevision(guardKey), "=", t.guard)).
				Then(append(ops, clientv3.OpPut(guardKey, ""))...).
				Commit()
			done = err == nil && res.Succeeded
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// patiently repeats f while the voter is not there, until ctx ends.
func (s *Store) patiently(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil || codeOf(err) != codes.Unavailable || ctx.Err() != nil {
			return err
		}
		pause(ctx, 20*time.Millisecond)
	}
}

// codeOf returns the code of an error of etcd, whichever of its kinds.
func codeOf(err error) codes.Code {
	var e rpctypes.EtcdError
	if errors.As(err, &e) {
		return e.Code()
	}
	return status.Code(err)
}

// Nodes implements cluster.Store.
func (s *Store) Nodes(ctx context.Context) ([]unum.NodeInfo, error) {
	ctx, done := s.bound(ctx)
	defer done()
	t, err := s.snapshot(ctx)
	if err != nil {
		return nil, s.fail("list nodes", "", err)
	}
	return t.Nodes(), nil
}

// SetState implements cluster.Store.
func (s *Store) SetState(ctx context.Context, id unum.NodeID, epoch unum.Epoch, state unum.NodeState) error {
	ctx, done := s.bound(ctx)
	defer done()
	return s.fail("set state", id, s.update(ctx, func(t *cluster.Table) ([]clientv3.Op, error) {
		r, err := t.SetState(id, epoch, state)
		if err != nil {
			return nil, err
		}
		put, err := putRow(r)
		ops := []clientv3.Op{put}
		if !t.Alive[id] {
			ops = append(ops, clientv3.OpDelete(alivePrefix+string(id)))
		}
		return ops, err
	}))
}

// DeclareDown implements cluster.Store.
func (s *Store) DeclareDown(ctx context.Context, seen unum.NodeInfo) (unum.Epoch, error) {
	ctx, done := s.bound(ctx)
	defer done()
	var now unum.Epoch
	err := s.update(ctx, func(t *cluster.Table) ([]clientv3.Op, error) {
		r, changed, err := t.DeclareDown(seen)
		if now = r.Epoch; err != nil || !changed {
			return nil, err
		}
		put, err := putRow(r)
		return []clientv3.Op{put, clientv3.OpDelete(alivePrefix + string(seen.ID))}, err
	})
	return now, s.fail("declare down", seen.ID, err)
}

// Release implements cluster.Store.
func (s *Store) Release(ctx context.Context, id unum.NodeID) error {
	ctx, done := s.bound(ctx)
	defer done()
	return s.fail("release", id, s.update(ctx, func(t *cluster.Table) ([]clientv3.Op, error) {
		r, ok, err := t.Release(id)
		if err != nil || !ok {
			return nil, err
		}
		return []clientv3.Op{clientv3.OpDelete(rowKey(r)), clientv3.OpDelete(alivePrefix + string(id))}, nil
	}))
}

// Get implements cluster.Store.
func (s *Store) Get(ctx context.Context, key string) ([]byte, cluster.Revision, error) {
	ctx, done := s.bound(ctx)
	defer done()
	res, err := s.cl.Get(ctx, keyPrefix+key)
	switch {
	case err != nil:
		return nil, 0, s.fail("get "+key, "", err)
	case len(res.Kvs) == 0:
		return nil, 0, s.fail("get "+key, "", fs.ErrNotExist)
	}
	return res.Kvs[0].Value, cluster.Revision(res.Kvs[0].ModRevision), nil
}

// Swap implements cluster.Store.
func (s *Store) Swap(ctx context.Context, key string, old cluster.Revision, value []byte) (cluster.Revision, error) {
	ctx, done := s.bound(ctx)
	defer done()
	key = keyPrefix + key
	op := clientv3.OpPut(key, string(value))
	if value == nil {
		op = clientv3.OpDelete(key)
	}
	res, err := s.cl.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", int64(old))).
		Then(op).Commit()
	switch {
	case err != nil:
		return 0, s.fail("set "+key, "", err)
	case !res.Succeeded:
		return 0, s.fail("set "+key, "", cluster.ErrConflict)
	}
	return cluster.Revision(res.Header.Revision), nil
}

// List implements cluster.Store.
func (s *Store) List(ctx context.Context, prefix string) (map[string]cluster.Entry, error) {
	ctx, done := s.bound(ctx)
	defer done()
	res, err := s.cl.Get(ctx, keyPrefix+prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, s.fail("list "+prefix, "", err)
	}
	out := make(map[string]cluster.Entry, len(res.Kvs))
	for _, kv := range res.Kvs {
		out[string(kv.Key[len(keyPrefix):])] = cluster.Entry{Value: kv.Value, Revision: cluster.Revision(kv.ModRevision)}
	}
	return out, nil
}
