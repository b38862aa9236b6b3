package fsnode

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func temp(t testing.TB, flags int, content string) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func content(t testing.TB, f *os.File) string {
	t.Helper()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// (head -1; cat) < f: head reads a block and seeks back behind the line.
func TestHeadLeavesTheRest(t *testing.T) {
	p := newPair(t)
	f := temp(t, os.O_RDONLY, "one\n"+strings.Repeat("two\n", 5000))
	out := temp(t, os.O_RDWR, "")
	if err := p.body(f, out, "head", "-n1"); err != nil {
		t.Fatal(err)
	}
	if got := content(t, out); got != "one\n" {
		t.Errorf("head wrote %q", got)
	}
	if pos, _ := f.Seek(0, 1); pos != 4 {
		t.Errorf("position at home is %d, want 4", pos)
	}
	if err := p.body(f, out, "cat"); err != nil {
		t.Fatal(err)
	}
	if got, want := content(t, out), content(t, f); got != want {
		t.Errorf("together %d bytes, want %d", len(got), len(want))
	}
}

// (a; b; a) > f, a at home.
func TestPositionIsHomes(t *testing.T) {
	p := newPair(t)
	f := temp(t, os.O_RDWR, "")
	f.WriteString("home 1\n")
	if err := p.body(nil, f, "sh", "-c", "echo body 1; echo body 2"); err != nil {
		t.Fatal(err)
	}
	f.WriteString("home 2\n")
	if err := p.body(nil, f, "echo", "body 3"); err != nil {
		t.Fatal(err)
	}
	f.WriteString("home 3\n")
	want := "home 1\nbody 1\nbody 2\nhome 2\nbody 3\nhome 3\n"
	if got := content(t, f); got != want {
		t.Errorf("got %q", got)
	}
}

// Three bodies and home write records of all sizes at once, through one
// description: none is torn, none is lost.
func TestRecordsStayWhole(t *testing.T) {
	for name, flags := range map[string]int{">": os.O_RDWR, ">>": os.O_RDWR | os.O_APPEND} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			f := temp(t, flags, "")
			const script = `import os,sys
w=sys.argv[1].encode()
for i in range(60):
    n=100+(i*7919*int(sys.argv[2]))%69900
    os.write(1, w*(n-1)+b"\n")
`
			var waits []func() error
			for i, w := range []string{"a", "b", "c"} {
				waits = append(waits, p.start(nil, f, "python3", "-ISc", script, w, string(rune('1'+i))))
			}
			for i := range 60 {
				f.Write(append(bytes.Repeat([]byte("h"), 100+i*997), '\n'))
			}
			for _, w := range waits {
				if err := w(); err != nil {
					t.Error(err)
				}
			}
			lines := strings.Split(content(t, f), "\n")
			count := map[byte]int{}
			for _, l := range lines[:len(lines)-1] {
				if l == "" || strings.Count(l, l[:1]) != len(l) {
					t.Fatalf("torn record of %d bytes", len(l))
				}
				count[l[0]]++
			}
			for _, w := range []byte("abch") {
				if count[w] != 60 {
					t.Errorf("%d records of %c, want 60", count[w], w)
				}
			}
		})
	}
}
