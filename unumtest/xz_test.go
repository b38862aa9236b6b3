package unumtest

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"
)

// artifacts hashes every file of a tree that a build must make the same
// again; config.log tells times and PIDs.
func artifacts(dir string) (map[string]string, error) {
	m := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		if rel == "config.log" {
			return nil
		}
		if d.Type()&fs.ModeSymlink != 0 {
			m[rel], _ = os.Readlink(p)
			return nil
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		m[rel] = fmt.Sprintf("%x", sha256.Sum256(b))
		return nil
	})
	return m, err
}

// A real project, unmodified: configure, make -j6, make check in a play, and
// the same artifacts, bit for bit, as natively at the same path.
func TestBuildXZ(t *testing.T) {
	needRoot(t)
	needLong(t)
	for _, p := range []string{"apt-get", "dpkg-source", "gcc", "make", "xz"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatalf("the build of xz-utils needs %s: apt-get install dpkg-dev gcc make xz-utils", p)
		}
	}
	src, err := Source("xz-utils")
	if err != nil {
		t.Skipf("the source of xz-utils cannot be fetched: %v", err)
	}
	base, err := os.MkdirTemp("/tmp", "unum-xz-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	dir := filepath.Join(base, "xz")
	unpack := func() {
		t.Helper()
		os.RemoveAll(dir)
		dsc, _ := filepath.Glob(src + "/*.dsc")
		if out, err := exec.Command("dpkg-source", "--no-check", "-x", dsc[0], dir).CombinedOutput(); err != nil {
			t.Fatalf("dpkg-source: %v: %s", err, out)
		}
	}
	const steps = `exec </dev/null
step() { s=$(date +%s%N); "$@" > "$log" 2>&1; r=$?; echo "$1 $2: status $r after $((($(date +%s%N) - s) / 1000000)) ms"; [ $r = 0 ] || { tail -20 "$log" | sed 's/^/| /'; exit 1; }; }
`
	script := func(log string) string {
		return steps + "log=" + base + "/" + log + "; cd " + dir + " && step ./configure --quiet; step make -j6; echo made\n"
	}
	unpack()
	native := exec.Command("/bin/bash", "-c", script("native.log"))
	native.Env = append(os.Environ(), "LC_ALL=C")
	out, err := native.CombinedOutput()
	if err != nil {
		t.Fatalf("natively: %v: %s", err, out)
	}
	t.Logf("natively:\n%s", out)
	want, err := artifacts(dir)
	if err != nil {
		t.Fatal(err)
	}
	unpack()

	if err := os.MkdirAll(base+"/w", 0o755); err != nil {
		t.Fatal(err)
	}
	// Descriptor 3 is how the script and the test talk; the build has no
	// standard input.
	w := startIn(t, base, "exec 3<&0\necho up; read line <&3\nexport UNUM_NODE=auto\n"+
		strings.Replace(script("play.log"), "exec </dev/null", "exec </dev/null", 1)+"read line <&3\nstep make check; echo checked\nread line <&3\n")
	w.want(20*time.Second, `^up`)
	l, err := w.play.Ledger()
	if err != nil {
		t.Fatal(err)
	}
	w.say("on")
	w.want(10*time.Minute, `configure .*status 0`)
	before, err := l.Count("cc1")
	if err != nil {
		t.Fatal(err)
	}
	w.want(10*time.Minute, `^made`)
	cc1, err := l.Count("cc1")
	if err != nil {
		t.Fatal(err)
	}
	// configure runs one compiler after the other; it is make that spreads.
	t.Logf("cc1 of configure by node: %v", before)
	for n := range cc1 {
		cc1[n] -= before[n]
	}
	got, err := artifacts(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for n := range want {
		names = append(names, n)
	}
	for n := range got {
		if _, ok := want[n]; !ok {
			names = append(names, n)
		}
	}
	sort.Strings(names)
	for _, n := range names {
		if want[n] != got[n] {
			t.Errorf("%s: natively %.12q, in the play %.12q", n, want[n], got[n])
		}
	}
	total := 0
	for _, n := range cc1 {
		total += n
	}
	t.Logf("cc1: %d, by node %v", total, cc1)
	if total < 100 {
		t.Errorf("only %d runs of cc1 were counted", total)
	}
	for id, n := range cc1 {
		if n*5 < total {
			t.Errorf("%s ran %d of %d cc1, less than a fifth", id, n, total)
		}
	}
	w.say("on")
	w.want(10*time.Minute, `^checked`)
}
