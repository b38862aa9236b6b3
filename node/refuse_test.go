package node

import (
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"unum/node/config"
	"unum/wire"
)

// A daemon whose port somebody else has says so in one line, and has started
// nothing.
func TestPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := t.TempDir()
	cfg := &config.Config{
		Cluster: "c", Node: "n1", Hostname: "c", Voter: true, Dir: dir, Root: "/", RunDir: dir,
		Listen: l.Addr().String(), Coordinator: l.Addr().String(), CoordinatorNode: "n1",
	}
	tls := cfg.TLSDir()
	cfg.TLS = config.TLS{CA: tls + "/ca.pem", Cert: tls + "/node.pem", Key: tls + "/node.key"}
	if err := os.MkdirAll(tls, 0o700); err != nil {
		t.Fatal(err)
	}
	ca, err := wire.NewAuthority("c", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue("n1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(ca.SaveNode(tls, cert), cfg.Save()); err != nil {
		t.Fatal(err)
	}
	err = Main(cfg.Path())
	if !errors.Is(err, syscall.EADDRINUSE) || strings.Contains(err.Error(), "\n") ||
		err.Error() != "port: listen tcp "+cfg.Listen+": bind: address already in use" {
		t.Errorf("%v", err)
	}
}
