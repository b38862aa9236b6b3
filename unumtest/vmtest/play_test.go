package vmtest

import (
	"context"
	_ "embed"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

//go:embed sample.sh
var sampleScript []byte

// unumBinary builds the product, or takes what UNUM_BIN names.
func unumBinary(t *testing.T) string {
	if bin := os.Getenv("UNUM_BIN"); bin != "" {
		return bin
	}
	bin := filepath.Join(t.TempDir(), "unum")
	cmd := exec.Command("go", "build", "-o", bin, "unum/cmd/unum")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

// modulesOfPlay are those that a machine with Debian's kernel loads by itself
// when play asks for their devices and file systems; here nobody does.
var modulesOfPlay = []string{"fuse", "veth", "bridge", "overlay"}

// waiting is what a play says when it starts slowly, as an emulated one does.
var waiting = regexp.MustCompile(`(?m)^unum: waiting for .*\n`)

// TestPlay runs the product on the floor of supported kernels: the first slice,
// and a sample of what is as on one machine, natively and on other nodes.
func TestPlay(t *testing.T) {
	k := kit(t)
	im := &Image{}
	im.Programs("bash", "dash", "cat", "head", "tail", "wc", "sort", "seq", "tr", "sleep", "true", "false", "env",
		"ls", "rm", "dmesg", "mkdir", "mktemp", "nice", "nohup", "timeout", "setsid", "flock", "xargs", "grep", "sed", "make",
		"kill", "ps", "id", "uname", "yes", "cmp", "sha256sum", "dd", "date", "touch", "stty", "tty", "printf", "echo", "script", "tee")
	im.Link("/bin/sh", "dash")
	for f, data := range map[string]string{
		"/etc/passwd": "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/bash\n",
		"/etc/group":  "root:x:0:\ntty:x:5:\nuser:x:1000:\n",
		"/etc/hosts":  "127.0.0.1 localhost\n",
	} {
		im.Data(f, 0o644, []byte(data))
	}
	im.Copy("/usr/bin/unum", unumBinary(t))
	im.Data("/vm/sample.sh", 0o755, sampleScript)
	im.Modules(modulesOfPlay...)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Minute)
	defer cancel()
	res, err := k.Run(ctx, Config{Memory: 3072, Console: &console{t: t}}, im, []Command{
		{Name: "doctor", Script: "exec unum doctor", Timeout: time.Minute},
		{Name: "slice", Script: "exec timeout -k 5 110 unum play -- unum run -n n2 sh -c 'exit 7'", Timeout: 2 * time.Minute},
		{Name: "native", Script: "exec bash /vm/sample.sh", Timeout: 2 * time.Minute},
		{Name: "home", Script: "exec timeout -k 5 230 unum play -- env UNUM_NODE=here bash /vm/sample.sh", Timeout: 4 * time.Minute},
		{Name: "placed", Script: "exec timeout -k 5 350 unum play -- env UNUM_NODE=elsewhere bash /vm/sample.sh", Timeout: 6 * time.Minute},
		{Name: "residue", Script: residue, Timeout: time.Minute},
		{Name: "logs", Script: "for f in /run/unum/play/*/*/*.log; do echo \"== $f\"; tail -n 40 $f; done; dmesg | tail -n 40"},
	})
	got := map[string]Result{}
	for _, r := range res {
		r.Output = waiting.ReplaceAllString(r.Output, "")
		got[r.Name] = r
	}
	if err != nil {
		t.Error(err)
	}
	if r := got["doctor"]; r.Status != 0 || !strings.Contains(r.Output, "6.1") {
		t.Errorf("unum doctor: status %d\n%s", r.Status, r.Output)
	} else {
		t.Logf("unum doctor:\n%s", r.Output)
	}
	if r := got["slice"]; r.Status != 7 {
		t.Errorf("unum play -- unum run -n n2 sh -c 'exit 7': status %d\n%s", r.Status, r.Output)
	}
	native := got["native"]
	if native.Status != 0 || strings.Count(native.Output, "\n") < 20 {
		t.Errorf("the control itself fails: status %d\n%s", native.Status, native.Output)
	}
	for _, where := range []string{"home", "placed"} {
		if r := got[where]; r.Status != 0 {
			t.Errorf("%s: status %d\n%s", where, r.Status, r.Output)
		} else if r.Output != native.Output {
			t.Errorf("%s differs from native:\n--- native\n%s--- %s\n%s", where, native.Output, where, r.Output)
		}
	}
	if r := got["residue"]; r.Status != 0 || r.Output != "" {
		t.Errorf("left behind (status %d):\n%s", r.Status, r.Output)
	}
	if t.Failed() {
		t.Logf("logs:\n%s", got["logs"].Output)
	}
}

// residue prints what a play should have taken away.
const residue = `
ls /run/unum/play 2>/dev/null
ls -d /sys/fs/cgroup/*unum* 2>/dev/null
/bin/busybox mount | grep unum
/bin/busybox ip link | grep -v -e 'lo:' -e link/loopback | grep -i -e veth -e br -e unum
ps -eo comm | grep '^unum'
true
`
