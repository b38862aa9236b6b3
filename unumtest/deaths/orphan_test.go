package deaths

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Orphans of a placed program, and the subreaper that they belong to, outlive
// either daemon: one that ends while none is there, and one that is left then.
func TestOrphansOfASubreaper(t *testing.T) {
	c := start(t, 2)
	script := `cat > "$D/sub.py" <<'END'
import ctypes, os
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) # PR_SET_CHILD_SUBREAPER
os.environ['UNUM_NODE'] = 'n2'
first = os.fork()
if first == 0:
    os.chdir(os.environ['D'])
    wait = 'select undef, undef, undef, 0.01 while ! -e q(%s);'
    late = "if (!fork) { %s exit 6 } %s" % (wait % 'late', wait % 'go')
    os.execvp('perl', ['perl', '-e', "if (!fork) { if (!fork) { open F, q(>up); %s exit 5 } %s exit 4 } %s exit 3"
        % (wait % 'go', late, wait % 'first')])
got = []
while True:
    try: pid, st = os.wait()
    except ChildProcessError: break
    if pid == first: open(os.environ['D'] + '/told', 'w').close()
    got.append(os.waitstatus_to_exitcode(st))
print(sorted(got))
END
UNUM_NODE=here python3 "$D/sub.py"`
	touch := func(name string) { os.WriteFile(filepath.Join(c.dir, name), nil, 0o600) }
	there := func(name string) {
		c.await(name, 1, func() []int {
			if _, err := os.Stat(filepath.Join(c.dir, name)); err != nil {
				return nil
			}
			return []int{1}
		})
	}
	for _, daemons := range [][]int{{1}, {0}, {0, 1}} {
		for _, name := range []string{"up", "first", "told", "go", "late"} {
			os.Remove(filepath.Join(c.dir, name))
		}
		j := c.run(script)
		there("up")
		touch("first")
		there("told")
		for _, n := range daemons {
			c.killService(n, "daemon")
		}
		touch("go")
		for _, n := range daemons {
			c.awaitBeat(n, j.done)
		}
		touch("late")
		j.ended(20 * time.Second)
		if got := j.out.String(); got != "[3, 4, 5, 6]\n" {
			t.Errorf("daemons %v killed: %q", daemons, got)
		}
	}
}
