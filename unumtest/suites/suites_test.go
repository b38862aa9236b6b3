package suites

import (
	"bufio"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unum/unumtest"
)

// patience is how long the tests of one suite may take.
const patience = 15 * time.Minute

func TestMain(m *testing.M) {
	// What this process inherited by accident the tests of shells would see.
	unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	os.Exit(m.Run())
}

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

	native := func(only ...string) verdicts {
		sh(fmt.Sprintf("only='%s' timeout %v bash tests.sh || true", strings.Join(only, " "), patience.Seconds()))
		return s.read(t, base)
	}
	control := native()
	if len(control.names) == 0 {
		t.Fatal("natively the suite has run no test")
	}
	got, finished := s.placed(t, base, nil)
	other, missing := control.differing(got)
	t.Logf("of %d tests %d ran in the play, %d ended otherwise", len(control.names), len(control.names)-len(missing), len(other))
	if len(missing) > 0 {
		t.Errorf("finished: %v; %d tests did not run in the play, %s first", finished, len(missing), missing[0])
	}
	if len(other) == 0 {
		return
	}
	// What depends on the time may differ once, here or there.
	names := slices.Sorted(maps.Keys(other))
	second, _ := s.placed(t, base, names)
	control2 := native(names...)
	for _, name := range names {
		end := other[name]
		g, ran := second.end[name]
		if why := s.known[name]; why != "" {
			t.Logf("%s is a known difference: %s", name, why)
		} else if control2.end[name] != control.end[name] {
			t.Logf("%s is unsteady natively: %q, then %q", name, control.end[name], control2.end[name])
		} else if !ran || g != control.end[name] {
			t.Errorf("%s: natively %q, in the play %q, then %q", name, control.end[name], end, g)
		} else {
			t.Logf("%s is unsteady: natively %q, in the play once %q", name, control.end[name], end)
		}
	}
}

func (s suite) read(t *testing.T, base string) verdicts {
	t.Helper()
	b, err := os.ReadFile(base + "/verdicts")
	if err != nil {
		t.Fatal(err)
	}
	return parse(string(b))
}

// placed runs the tests in a play: all, or only those. The shell that starts them
// stays at home, since a session's leader that is elsewhere shuts two nodes to
// its children. If the suite has not finished in time, what did run counts.
func (s suite) placed(t *testing.T, base string, only []string) (got verdicts, finished bool) {
	t.Helper()
	os.Remove(base + "/verdicts")
	p, err := unumtest.Start(unumtest.Options{
		Env:     []string{"UNUM_NODE=here", "only=" + strings.Join(only, " ")},
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
	expect := func(want string, within time.Duration) bool {
		t.Helper()
		select {
		case l := <-lines:
			if l != want {
				t.Fatalf("the play says %q instead of %q: %s", l, want, p.Stderr())
			}
			return true
		case <-time.After(within):
			t.Errorf("not %s after %v\n%s", want, within, p.Dump())
			return false
		}
	}
	if !expect("up", time.Minute) {
		t.FailNow()
	}
	l, err := p.Ledger()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(p.Stdin)
	finished = expect("done", patience)
	bodies, err := l.Total()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("bodies by node: %v", bodies)
	if len(bodies) < 2 {
		t.Errorf("only %v ran bodies", bodies)
	}
	return s.read(t, base), finished
}
