package calls

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseAddr(t *testing.T) {
	in4 := func(port byte, a ...byte) []byte { return append([]byte{unix.AF_INET, 0, 0, port}, a...) }
	in6 := func(port byte, a net.IP) []byte {
		return append([]byte{unix.AF_INET6, 0, 0, port, 0, 0, 0, 0}, a.To16()...)
	}
	un := func(s string) []byte { return append([]byte{unix.AF_UNIX, 0}, s...) }
	for _, c := range []struct {
		name string
		b    []byte
		want endpoint
	}{
		{"loopback", in4(80, 127, 0, 0, 1), endpoint{Kind: tcp, Port: 80}},
		{"all of 127/8", in4(53, 127, 0, 0, 53), endpoint{Kind: tcp, Port: 53}},
		{"0.0.0.0 is the loopback", in4(80, 0, 0, 0, 0), endpoint{Kind: tcp, Port: 80}},
		{"another machine", in4(80, 10, 0, 0, 1), endpoint{}},
		{"::1", in6(80, net.IPv6loopback), endpoint{Kind: tcp, Port: 80}},
		{"mapped", in6(80, net.ParseIP("::ffff:127.0.0.1")), endpoint{Kind: tcp, Port: 80}},
		{"another, v6", in6(80, net.ParseIP("2001:db8::1")), endpoint{}},
		{"path", un("/tmp/a\x00junk"), endpoint{Kind: pathSocket, Name: "/tmp/a"}},
		{"path without NUL", un("a"), endpoint{Kind: pathSocket, Name: "a"}},
		{"abstract, any bytes", un("\x00a\x00b"), endpoint{Kind: abstract, Name: "a\x00b"}},
		{"unnamed", un(""), endpoint{}},
		{"short", []byte{unix.AF_INET}, endpoint{}},
		{"short inet", []byte{unix.AF_INET, 0, 0, 80, 127}, endpoint{}},
		{"short inet6", []byte{unix.AF_INET6, 0, 0, 80, 127}, endpoint{}},
		{"unspecified", []byte{0, 0, 0, 80}, endpoint{}},
	} {
		if got := parseAddr(c.b); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestHasPort(t *testing.T) {
	text := []byte("  sl  local_address rem_address   st\n" +
		"   0: 0100007F:1F90 00000000:0000 0A 00000000\n" +
		"   1: 0100007F:1F91 0100007F:C350 01 00000000\n")
	for port, want := range map[uint16]bool{8080: true, 8081: false, 80: false} {
		if got := hasPort(text, port, tcpListen); got != want {
			t.Errorf("port %d: %v", port, got)
		}
	}
}

// The kernel's own text is the test of the parsers.
func TestBoundNames(t *testing.T) {
	l, err := net.Listen("unix", "@unum calls test")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	text, err := os.ReadFile("/proc/self/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"@unum calls test": true, "@unum calls": false, "@calls test": false} {
		if got := hasName(text, name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

func TestLists(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: file, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	link := filepath.Join(dir, "link")
	if err := os.Symlink("s", link); err != nil {
		t.Fatal(err)
	}
	tid := os.Getpid()
	if _, err := boundInodes(); err != nil {
		t.Skipf("the kernel has no unix_diag: %v", err)
	}
	if !lists(tid, file) || !lists(tid, link) {
		t.Error("a socket that is bound is not found")
	}
	if !lists(tid, filepath.Join(dir, "none")) || !lists(tid, dir) {
		t.Error("what is no socket is not left to the kernel")
	}
	l.Close()
	if lists(tid, file) {
		t.Error("a socket that nobody is bound to is found")
	}
}

func TestParseDiagOfHostileBytes(t *testing.T) {
	for _, b := range [][]byte{
		make([]byte, 16), {255, 255, 255, 255, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		append([]byte{40, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 24)...),
	} {
		parseDiag(b, map[uint32]bool{})
	}
}

func TestHasKey(t *testing.T) {
	text := []byte("       key      shmid perms\n      4711          0   666\n        -1          1   600\n")
	for key, want := range map[int32]bool{4711: true, -1: true, 0: false, 666: false} {
		if got := hasKey(text, key); got != want {
			t.Errorf("key %d: %v", key, got)
		}
	}
}

func FuzzParseAddr(f *testing.F) {
	f.Add([]byte{1, 0, 0, 'a'})
	f.Fuzz(func(t *testing.T, b []byte) { parseAddr(b) })
}
