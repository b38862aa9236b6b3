package vmtest

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// kit returns the kernel to boot. These tests emulate a machine and download a
// kernel, so they run only in `make test-long`, which sets UNUM_LONG. UNUM_VM
// names another directory for what is downloaded.
func kit(t *testing.T) *Kit {
	if os.Getenv("UNUM_LONG") == "" {
		t.Skip("UNUM_LONG is not set (make test-long sets it)")
	}
	cache := os.Getenv("UNUM_VM")
	if cache == "" {
		cache = "/var/tmp/unum-vm"
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	k, err := Fetch(ctx, cache)
	if err != nil {
		t.Skipf("the kernel cannot be fetched: %v", err)
	}
	return k
}

// console passes the machine's console on to the test's log, line by line.
type console struct {
	t   *testing.T
	buf []byte
}

func (c *console) Write(p []byte) (int, error) {
	c.buf = append(c.buf, p...)
	for {
		i := bytes.IndexByte(c.buf, '\n')
		if i < 0 {
			return len(p), nil
		}
		c.t.Logf("vm: %s", strings.TrimRight(string(c.buf[:i]), "\r"))
		c.buf = c.buf[i+1:]
	}
}

func TestBoot(t *testing.T) {
	k := kit(t)
	im := &Image{}
	im.Programs("sh", "uname", "false", "cat")
	im.Modules("fuse", "veth", "bridge")
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	res, err := k.Run(ctx, Config{Console: &console{t: t}}, im, []Command{
		{Name: "uname", Script: "uname -r"},
		{Name: "status", Script: "exit 7"},
		{Name: "killed", Script: "while :; do :; done", Timeout: 2 * time.Second},
		{Name: "bytes", Script: "printf 'a\\000b\\r\\nc'"},
		{Name: "modules", Script: "/bin/busybox lsmod"},
		{Name: "root", Script: "/bin/busybox mount"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []Result{
		{"uname", 0, k.Release + "\n"}, {"status", 7, ""}, {"killed", 137, ""}, {"bytes", 0, "a\x00b\r\nc"},
	}
	for i, w := range want {
		got := res[i]
		if got.Name == "killed" {
			got.Output = ""
		}
		if got != w {
			t.Errorf("%s: %+v, want %+v", w.Name, got, w)
		}
	}
	for _, m := range []string{"fuse", "veth", "bridge"} {
		if !strings.Contains(res[4].Output, m) {
			t.Errorf("module %s is not loaded:\n%s", m, res[4].Output)
		}
	}
	for _, m := range []string{"tmpfs on / ", "cgroup2", "devpts"} {
		if !strings.Contains(res[5].Output, m) {
			t.Errorf("%q is not mounted:\n%s", m, res[5].Output)
		}
	}
}

// The archive is one that another reader understands.
func TestCpio(t *testing.T) {
	bb, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("no busybox to read it with")
	}
	im := &Image{}
	im.Data("/etc/a", 0o640, []byte("hello"))
	im.Data("/bin/b", 0o751, nil)
	im.Link("/etc/l", "a")
	var buf bytes.Buffer
	if err := im.archive(&cpio{w: &buf}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// In a user's own directory without root there is no mknod: names only.
	cmd := exec.Command(bb, "cpio", "-idm", "etc/*", "usr/*", "bin", "tmp")
	cmd.Dir, cmd.Stdin = dir, &buf
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "etc/l")); err != nil || string(b) != "hello" {
		t.Errorf("through the link: %q, %v", b, err)
	}
	if l, err := os.Readlink(filepath.Join(dir, "bin")); l != "usr/bin" {
		t.Errorf("bin leads to %q, %v", l, err)
	}
	if fi, err := os.Stat(filepath.Join(dir, "usr/bin/b")); err != nil || fi.Mode() != 0o751 {
		t.Errorf("mode of b: %v, %v", fi, err)
	}
	if fi, err := os.Stat(filepath.Join(dir, "tmp")); err != nil || fi.Mode() != os.ModeDir|0o777|os.ModeSticky {
		t.Errorf("mode of tmp: %v, %v", fi, err)
	}
}

func TestParse(t *testing.T) {
	res := []Result{{Status: -1}, {Status: -1}}
	if !parse([]byte("noise\nvmtest 0001 3 6\nvmtes\nvmtest end 0 0\n"), res) {
		t.Error("a complete report is taken for a broken one")
	}
	if res[0].Status != -1 || res[1] != (Result{Status: 3, Output: "vmtes\n"}) {
		t.Errorf("%+v", res)
	}
	if parse([]byte("vmtest 0000 3 600\nvmtes"), res) {
		t.Error("a broken report is taken for a complete one")
	}
}
