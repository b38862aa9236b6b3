package etcd

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"

	"google.golang.org/grpc"

	"unum"
)

// Sockets of a voter, in Config.Sockets.
const (
	peerSocket   = "etcd-peer.sock"
	clientSocket = "etcd-client.sock"
)

// PeerSocket is where a voter's etcd takes its peers' traffic, and
// ClientSocket that of clients: where the node's port leads connections
// without ALPN, and those of ClientALPN.
func (c Config) PeerSocket() string   { return filepath.Join(c.Sockets, peerSocket) }
func (c Config) ClientSocket() string { return filepath.Join(c.Sockets, clientSocket) }

// server is a running voter.
type server struct {
	*embed.Etcd

	mu      sync.Mutex
	stopped bool
	grpc    []*grpc.Server
}

// serves notes a server of etcd's, which it starts when it is ready.
func (s *server) serves(g *grpc.Server) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.grpc = append(s.grpc, g); s.stopped {
		g.Stop()
	}
}

// stop ends the voter. Its clients are cut off first: etcd would wait up to
// five seconds for their streams.
func (s *server) stop() {
	s.mu.Lock()
	s.stopped = true
	for _, g := range s.grpc {
		g.Stop()
	}
	s.mu.Unlock()
	s.Close()
}

var segmentOnce sync.Once

// startServer starts the embedded voter and waits until it leads.
func startServer(ctx context.Context, c Config) (*server, error) {
	for _, d := range []string{c.Dir, c.Sockets} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	// etcd listens where it is told, but a peer's URL must look like one of the
	// network: whoever uses it goes through the node's port.
	addr := c.Addr
	if addr == "" {
		addr = "127.0.0.1:1"
	}
	advertise := url.URL{Scheme: "https", Host: addr}
	e := embed.NewConfig()
	e.Name = string(c.Node)
	e.Dir = c.Dir
	e.ListenPeerUrls = []url.URL{{Scheme: "unix", Host: c.PeerSocket()}}
	e.ListenClientUrls = []url.URL{{Scheme: "unix", Host: c.ClientSocket()}}
	e.AdvertisePeerUrls = []url.URL{advertise}
	e.AdvertiseClientUrls = []url.URL{advertise}
	e.InitialCluster = fmt.Sprintf("%s=%s", e.Name, advertise.String())
	e.ClusterState = embed.ClusterStateFlagNew
	e.InitialClusterToken = "unum"
	e.TickMs, e.ElectionMs = 50, 500
	e.AutoCompactionMode, e.AutoCompactionRetention = embed.CompactorModeRevision, "1000"
	e.QuotaBackendBytes = 1 << 30
	e.StrictReconfigCheck = false
	e.EnableGRPCGateway = false
	if c.Fast {
		// The first election is the one that somebody waits for; see calm.
		e.TickMs, e.ElectionMs = 20, 100
		e.UnsafeNoFsync = true
		e.BackendBatchInterval = time.Second // nothing needs to be on the disk
		// The log is preallocated; on tmpfs that is memory, twice.
		segmentOnce.Do(func() { wal.SegmentSizeBytes = 4 << 20 })
	}
	e.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(&slogCore{log: c.Log}))
	s := &server{}
	e.ServiceRegister = s.serves
	var err error
	if s.Etcd, err = embed.StartEtcd(e); err != nil {
		return nil, err
	}
	select {
	case <-s.Server.ReadyNotify():
		if c.Fast {
			calm(s.Server, calmTick)
		}
		return s, nil
	case <-s.Server.StopNotify():
		err = fmt.Errorf("etcd stopped while it started")
	case err = <-s.Err():
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.stop()
	return nil, err
}

// ttlSeconds is a lease's time as etcd counts it, at least 1 s.
func ttlSeconds(d time.Duration) int64 {
	return max(1, int64((d+time.Second-1)/time.Second))
}

func failed(op string, id unum.NodeID, err error) error {
	if err == nil {
		return nil
	}
	return &unum.Error{Op: op, Node: id, Err: err}
}
