package wire

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"unum"
)

// clientHello returns what crypto/tls sends first.
func clientHello(t testing.TB, protos ...string) []byte {
	a, b := net.Pipe()
	defer b.Close()
	go func() {
		tls.Client(a, &tls.Config{NextProtos: protos, ServerName: "n1.unum", MinVersion: tls.VersionTLS13}).Handshake()
		a.Close()
	}()
	buf := make([]byte, maxClientHello)
	n, err := b.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

func TestParseClientHello(t *testing.T) {
	for _, protos := range [][]string{nil, {"unum/1"}, {"unum-etcd", "h2"}} {
		b := clientHello(t, protos...)
		want := ""
		if len(protos) > 0 {
			want = protos[0]
		}
		if got, err := parseClientHello(b); err != nil || got != want {
			t.Errorf("%v: %q, %v", protos, got, err)
		}
		for n := range b {
			if _, err := parseClientHello(b[:n]); err != errShort {
				t.Fatalf("%d of %d bytes: %v", n, len(b), err)
			}
		}
		// In two records.
		half := 5 + (len(b)-5)/2
		two := append([]byte{22, 3, 1, byte((half - 5) >> 8), byte(half - 5)}, b[5:half]...)
		two = append(two, 22, 3, 1, byte((len(b)-half)>>8), byte(len(b)-half))
		two = append(two, b[half:]...)
		if got, err := parseClientHello(two); err != nil || got != want {
			t.Errorf("in two records: %q, %v", got, err)
		}
	}
	if _, err := parseClientHello([]byte("GET / HTTP/1.1\r\n\r\n")); !errors.Is(err, errProtocol) {
		t.Errorf("HTTP: %v", err)
	}
}

func FuzzParseClientHello(f *testing.F) {
	f.Add(clientHello(f, "unum/1"))
	f.Add(clientHello(f))
	f.Fuzz(func(t *testing.T, b []byte) { parseClientHello(b) })
}

// A peer with a right certificate that sends anything at all does no harm.
func FuzzFrames(f *testing.F) {
	call, _ := appendCall(nil, 1, "echo", []byte("hello"))
	big, _ := appendCall(nil, 2, "echo", make([]byte, partSize+1))
	f.Add(append(call, big...))
	f.Add(appendNamed(nil, frameOpen, 1, "sink", nil))
	f.Add(appendFrame(appendNamed(nil, frameOpen, 1, "sink", nil), frameData, 1, []byte("x")))
	f.Add(appendFrame(nil, frameSync, 9, make([]byte, 16)))
	ca, err := NewAuthority("fuzz", time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	cert, err := ca.Issue("a", time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	e, err := New(Config{Node: "a", Cert: cert, CA: ca.Pool(), Protocol: "x"})
	if err != nil {
		f.Fatal(err)
	}
	defer e.Close()
	e.Handle("echo", echo)
	f.Fuzz(func(t *testing.T, in []byte) {
		near, far := net.Pipe()
		defer far.Close()
		defer near.Close()
		c := newConn(e, "b", near, &outBuffer{Conn: near}, nil)
		c.err = errors.New("nothing is sent")
		s := &session{ep: e, from: "b", ctx: e.ctx, calls: map[uint64]*inbound{}}
		r := newRemote(e, "b")
		for _, f := range []framer{
			&answerer{r: r, s: s, parts: parts{}}, &asker{r: r, parts: parts{}},
			&servedBulk{r: r, channels: newChannels(c)},
		} {
			for b := in; len(b) >= headerSize; {
				h, err := parseHeader(b)
				if err != nil || len(b) < headerSize+h.size {
					break
				}
				body := bytes.Clone(b[headerSize : headerSize+h.size])
				if err := f.frame(c, h, body); err != nil {
					break
				}
				b = b[headerSize+h.size:]
			}
		}
	})
}

func FuzzDecodeError(f *testing.F) {
	f.Add(encodeError(unum.ErrDenied))
	f.Add(encodeError(&unum.Error{Op: "x", Err: os.ErrNotExist}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if decodeError(b) == nil {
			t.Error("an error became none")
		}
	})
}

func TestTrustFiles(t *testing.T) {
	dir := t.TempDir()
	a, err := NewAuthority("x", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Save(dir); err != nil {
		t.Fatal(err)
	}
	if a, err = LoadAuthority(dir); err != nil {
		t.Fatal(err)
	}
	cert, err := a.Issue("n2", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	node := t.TempDir()
	for range 2 { // also over old ones
		if err := a.SaveNode(node, cert); err != nil {
			t.Fatal(err)
		}
	}
	loaded, pool, err := LoadNode(node)
	if err != nil {
		t.Fatal(err)
	}
	if !pool.Equal(a.Pool()) || !bytes.Equal(loaded.Certificate[0], cert.Certificate[0]) {
		t.Error("what was loaded is not what was saved")
	}
	files, err := filepath.Glob(node + "/*")
	if err != nil || len(files) != 3 {
		t.Errorf("files %v, %v", files, err)
	}
	for _, f := range files {
		if st, err := os.Stat(f); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, st.Mode(), err)
		}
	}
	if _, err := New(Config{Node: "n3", Cert: loaded, CA: pool, Protocol: "x"}); err == nil {
		t.Error("n3 may use the certificate of n2")
	}
	if _, _, err := LoadNode(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing to load: %v", err)
	}
}
