package suites

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"unum/unumtest"
)

// patience is how long the tests of one suite may take.
const patience = 15 * time.Minute

func TestSuites(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if !unumtest.Long() {
		t.Skip("long: UNUM_LONG=1, or make test-long")
	}
	only, err := regexp.Compile(os.Getenv("UNUM_SUITES"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if only.MatchString(s.name) {
			t.Run(s.name, s.compare)
		}
	}
}

func (s suite) compare(t *testing.T) {
	for _, p := range append([]string{"apt-get", "dpkg-source", "gcc", "make"}, s.needs...) {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatalf("the suite needs %s, which is not installed", p)
		}
	}
	src, err := unumtest.Source(s.pkg)
	if err != nil {
		t.Fatalf("the source of %s cannot be fetched: %v", s.pkg, err)
	}
	dsc, _ := filepath.Glob(src + "/*.dsc")
	base, err := os.MkdirTemp("/tmp", "unum-suite-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	sh := func(script string) {
		t.Helper()
		cmd := exec.Command("bash", "-e", "-c", script)
		cmd.Dir = base
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out[max(0, len(out)-2000):])
		}
	}
	sh("dpkg-source --no-check --skip-patches -x " + dsc[0] + " built && cd built && { " + s.build + "\n} </dev/null")
	// What was built is copied before each run: suites leave things behind.
	script := "cd " + base + " && rm -rf src out && cp -a built src && mkdir out && export out=$PWD/out LC_ALL=C && cd src && exec </dev/null >../verdicts 2>/dev/null\n" + s.tests
	if err := os.WriteFile(base+"/tests.sh", []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}

	sh("timeout " + fmt.Sprint(patience.Seconds()) + " bash tests.sh || true")
	control := s.read(t, base)
	if len(control) == 0 {
		t.Fatal("natively the suite has run no test")
	}
	first := differing(control, s.placed(t, base))
	t.Logf("%d tests", len(control))
	if len(first) == 0 {
		return
	}
	// What depends on the time may differ once.
	again := differing(control, s.placed(t, base))
	for name, end := range first {
		if why := s.known[name]; why != "" {
			t.Logf("%s is a known difference: %s", name, why)
		} else if g, ok := again[name]; ok {
			t.Errorf("%s: natively %q, in the play %q, then %q", name, control[name], end, g)
		} else {
			t.Logf("%s is unsteady: natively %q, in the play once %q", name, control[name], end)
		}
	}
}

func (s suite) read(t *testing.T, base string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(base + "/verdicts")
	if err != nil {
		t.Fatal(err)
	}
	return verdicts(string(b))
}

// placed runs the tests in a play. The shell that starts them stays at home,
// since a session's leader that is elsewhere shuts two nodes to its children.
func (s suite) placed(t *testing.T, base string) map[string]string {
	t.Helper()
	os.Remove(base + "/verdicts")
	p, err := unumtest.Start(unumtest.Options{
		Env:     []string{"UNUM_NODE=here"},
		Command: []string{"bash", "-c", "echo up; read _; UNUM_NODE=elsewhere bash " + base + "/tests.sh; echo done; read _"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	}()
	lines := make(chan string, 16)
	go func() { // ends with the play, whose output it reads
		defer close(lines)
		for sc := bufio.NewScanner(p.Stdout); sc.Scan(); {
			lines <- sc.Text()
		}
	}()
	expect := func(want string, within time.Duration) {
		t.Helper()
		select {
		case l := <-lines:
			if l == want {
				return
			}
			t.Fatalf("the play says %q instead of %q: %s", l, want, p.Stderr())
		case <-time.After(within):
			t.Fatalf("not %s after %v\n%s", want, within, p.Dump())
		}
	}
	expect("up", 20*time.Second)
	l, err := p.Ledger()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(p.Stdin)
	expect("done", patience)
	bodies, err := l.Total()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("bodies by node: %v", bodies)
	if len(bodies) < 2 {
		t.Errorf("only %v ran bodies", bodies)
	}
	return s.read(t, base)
}
