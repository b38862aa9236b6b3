package behave

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"unum/unumtest"
)

// driveEnv makes the test binary a driver: it holds the base directory.
const driveEnv = "UNUM_BEHAVE_BASE"

var (
	cases  []*Case
	runner *Runner
	inPlay *cluster
)

func TestMain(m *testing.M) {
	CloseInherited()
	var err error
	if cases, err = Load(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if base := os.Getenv(driveEnv); base != "" {
		if err := Drive(&Runner{Base: base}, cases, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "driver:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "SKIP: the behaviour suite needs root")
		return 0
	}
	base, err := os.MkdirTemp("/tmp", "unum-behave-")
	if err == nil {
		defer os.RemoveAll(base)
		if err = os.Chmod(base, 0o755); err == nil {
			err = Prepare(base)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	runner = &Runner{Base: base}
	inPlay = &cluster{base: base}
	defer inPlay.stop()
	return m.Run()
}

// modes is what to run beside the control.
func modes() []Mode {
	if s := os.Getenv("UNUM_BEHAVE_MODES"); s != "" {
		var ms []Mode
		for _, w := range strings.Split(s, ",") {
			if w != string(Native) {
				ms = append(ms, Mode(w))
			}
		}
		return ms
	}
	return []Mode{Home, Placed, Nested}
}

func TestBehaviour(t *testing.T) {
	only, err := regexp.Compile(os.Getenv("UNUM_BEHAVE_ONLY"))
	if err != nil {
		t.Fatal(err)
	}
	excuses, err := known()
	if err != nil {
		t.Fatal(err)
	}
	if d, err := time.ParseDuration(os.Getenv("UNUM_BEHAVE_TIMEOUT")); err == nil {
		for _, c := range cases {
			c.Timeout = min(c.Timeout, d)
		}
	}
	sum := &summary{}
	// All at once, as many as there are processors.
	t.Run("case", func(t *testing.T) {
		for _, c := range cases {
			if only.MatchString(c.Name) {
				t.Run(strings.ReplaceAll(c.Name, "/", "."), func(t *testing.T) {
					t.Parallel()
					sum.add(c, check(t, c))
				})
			}
		}
	})
	sum.again(t, excuses)
	if d := inPlay.deaths(); d != "" {
		// The cases do not show it: others take over where it was.
		t.Errorf("a daemon or a file server of the play died:\n%s", d)
	}
}

// difference is what a case did otherwise in one mode.
type difference struct {
	mode Mode
	text string
}

// check runs a case in all its modes and returns what differed.
func check(t *testing.T, c *Case) (differ []difference) {
	for _, p := range c.Needs {
		if p == "cores" {
			var l syscall.Rlimit
			if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &l); err != nil || l.Max == 0 {
				t.Skip("the case needs cores, which are forbidden here (ulimit -Hc is 0)")
			}
			continue
		}
		if _, err := exec.LookPath(p); err != nil && !exists(runner.Base+"/bin/"+p) {
			t.Skipf("the case needs %s, which is not installed", p)
		}
	}
	control := runner.Run(t.Context(), c, Native)
	left := leftovers(c)
	if os.Getenv("UNUM_BEHAVE_REWRITE") != "" && c.Stdout != nil {
		if err := rewrite(c, string(control.Stdout)); err != nil {
			t.Fatal(err)
		}
		return nil
	}
	if d := Diff(c, c.Expect(control), control) + left; d != "" {
		report(c, Native, d)
		return []difference{{Native, "the control itself is not what the case says:\n" + d + notes(control)}}
	}
	for _, m := range modes() {
		if c.Not[m] != "" {
			continue
		}
		got, at, err := inPlay.run(t.Context(), c, m)
		var d string
		if err != nil {
			d = err.Error() + "\n"
		} else {
			d = Diff(c, control, got) + leftovers(c)
			if d == "" && m != Home && c.Stays == "" && c.Unseen == "" {
				d = inPlay.wasPlaced(c, at, got)
			}
		}
		if d != "" {
			report(c, m, d)
			differ = append(differ, difference{m, d + notes(got)})
		}
	}
	return differ
}

func exists(p string) bool { _, err := os.Stat(p); return err == nil }

func notes(r *Result) string {
	if r == nil || len(r.Stderr) == 0 {
		return ""
	}
	return "it wrote to standard error:\n" + indent(head(string(r.Stderr), 2000)) + "\n"
}

// leftovers waits a little for the processes of a case to go, kills the rest
// and says what they were. It sees every node of a play, from outside.
func leftovers(c *Case) string {
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if len(runner.Processes(c)) == 0 {
			return ""
		}
	}
	s := runner.state(c)
	runner.Kill(c)
	if s == "" {
		return ""
	}
	return "processes left behind:\n" + s
}

// report appends to the file UNUM_BEHAVE_REPORT.
func report(c *Case, m Mode, d string) {
	if f := os.Getenv("UNUM_BEHAVE_REPORT"); f != "" {
		appendTo(f, fmt.Sprintf("## %s %s (%s)\n%s\n", c.Name, m, c.Where, d))
	}
}

func appendTo(file, text string) {
	w, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err == nil {
		w.WriteString(text)
		w.Close()
	}
}

// unsteady appends what differed once only to the file UNUM_UNSTEADY, which
// `make test` prints: the output of a package that passes nobody sees.
func unsteady(c *Case, d difference) {
	if f := os.Getenv("UNUM_UNSTEADY"); f != "" {
		appendTo(f, fmt.Sprintf("unsteady: %s %s (%s) differed once, and not when it was run again:\n%s\n", c.Name, d.mode, c.Where, indent(d.text)))
	}
}

// summary gathers what differed, so that one list stands at the end.
type summary struct {
	mu   sync.Mutex
	fail map[*Case][]difference
}

func (s *summary) add(c *Case, d []difference) {
	if len(d) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail == nil {
		s.fail = map[*Case][]difference{}
	}
	s.fail[c] = d
}

// again fails what differed twice, and in the long run also what differed once,
// unless it is known: it is run once more, alone.
func (s *summary) again(t *testing.T, excuses map[string]string) {
	var list []*Case
	for c := range s.fail {
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b *Case) int { return strings.Compare(a.Name, b.Name) })
	var b strings.Builder
	for _, c := range list {
		t.Run("again/"+strings.ReplaceAll(c.Name, "/", "."), func(t *testing.T) {
			now := check(t, c)
			for _, d := range s.fail[c] {
				if why := excuses[c.Name+" "+string(d.mode)]; why != "" {
					fmt.Fprintf(&b, "known     %-45s %-8s %s\n", c.Name, d.mode, why)
					continue
				}
				word, how, fail := "UNSTEADY", "once; run again, alone, it does not", t.Logf
				if os.Getenv("UNUM_LONG") != "" {
					fail = t.Errorf
				}
				if slices.ContainsFunc(now, func(n difference) bool { return n.mode == d.mode }) {
					word, how, fail = "DIFFERS", "twice", t.Errorf
				} else {
					unsteady(c, d)
				}
				fmt.Fprintf(&b, "%-9s %-45s %-8s %s\n", word, c.Name, d.mode, how)
				fail("%s %s differs from the control, %s:\n%s", c.Where, d.mode, how, d.text)
			}
		})
	}
	if b.Len() > 0 {
		t.Logf("what differed:\n%s", b.String())
	}
}

// cluster is the play that all cases share; started when the first needs it,
// started again when it broke.
type cluster struct {
	base string

	mu     sync.Mutex
	play   *unumtest.Play
	client *Client
	ledger *unumtest.Ledger
	starts int
	died   string // of plays that are over: Play.Deaths
	err    error
}

const maxStarts = 4

func (cl *cluster) get() (*Client, *unumtest.Play, error) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.client != nil {
		select {
		case <-cl.client.Gone:
			cl.closeLocked()
		default:
			return cl.client, cl.play, nil
		}
	}
	if cl.err != nil {
		return nil, nil, cl.err
	}
	if cl.starts++; cl.starts > maxStarts {
		cl.err = fmt.Errorf("the play broke %d times; no further one is started", maxStarts)
		return nil, nil, cl.err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	p, err := unumtest.Start(unumtest.Options{Nodes: 3, Env: []string{driveEnv + "=" + cl.base, "UNUM_NODE=here"}, Command: []string{self}})
	if err != nil {
		cl.err = fmt.Errorf("start a play: %w", err)
		return nil, nil, cl.err
	}
	c := NewClient(p.Stdin, p.Stdout)
	select {
	case <-c.Ready:
	case <-c.Gone:
		err = fmt.Errorf("the driver ended at once: %s", p.Stderr())
	case <-time.After(time.Minute):
		err = fmt.Errorf("the driver is not ready after a minute: %s", p.Stderr())
	}
	if err != nil {
		p.Kill()
		cl.err = err
		return nil, nil, err
	}
	cl.play, cl.client = p, c
	if cl.ledger, err = p.Ledger(); err != nil {
		// Without it nobody would notice that nothing was placed.
		cl.err = err
		p.Kill()
		return nil, nil, err
	}
	return c, p, nil
}

// run runs a case in the play. at is the play it ran in.
func (cl *cluster) run(ctx context.Context, c *Case, m Mode) (*Result, *unumtest.Play, error) {
	client, p, err := cl.get()
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout+15*time.Second)
	defer cancel()
	// The driver sees its own node only, and ends what hangs.
	var late string
	seen := make(chan struct{})
	look := time.AfterFunc(c.Timeout-c.Timeout/20, func() { late = runner.state(c); close(seen) })
	r, err := client.Run(ctx, c, m)
	if !look.Stop() {
		<-seen
	}
	if err != nil {
		err = fmt.Errorf("%w\nprocesses of the case:\n%s%s", err, runner.state(c), p.Dump())
		runner.Kill(c)
		return nil, p, err
	}
	if r.Hang != "" {
		r.Hang += "on all nodes, before it was ended:\n" + late + p.Dump()
	}
	return r, p, nil
}

// wasPlaced says, if nothing of the case ran on another node than its parent,
// that it should have.
func (cl *cluster) wasPlaced(c *Case, p *unumtest.Play, r *Result) string {
	cl.mu.Lock()
	l := cl.ledger
	cl.mu.Unlock()
	if l == nil || p == nil {
		return ""
	}
	n, err := l.Placed(r.Pid)
	if err != nil {
		return "the ledger of execs cannot be read: " + err.Error() + "\n"
	}
	if n == 0 {
		return "nothing was placed\n" + p.Dump()
	}
	return ""
}

func (cl *cluster) closeLocked() {
	if cl.client != nil {
		cl.client.Close()
	}
	if cl.play != nil {
		cl.died += cl.play.Deaths()
		if err := cl.play.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stop the play:", err)
		}
	}
	cl.client, cl.play, cl.ledger = nil, nil, nil
}

// deaths is what died in all plays until now.
func (cl *cluster) deaths() string {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.play == nil {
		return cl.died
	}
	return cl.died + cl.play.Deaths()
}

func (cl *cluster) stop() {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.closeLocked()
}
