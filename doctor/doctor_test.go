package doctor

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"unum"
	"unum/sys"
)

func TestRequire(t *testing.T) {
	ok := func() error { return nil }
	absent := func() error {
		return &sys.NoFeature{Name: "time namespaces", Since: "5.6", Err: unix.EINVAL}
	}
	for _, c := range []struct {
		name   string
		checks []Check
		want   string // "" is no refusal
		is     error
	}{
		{"all there", []Check{{Name: "a", Needed: true, Probe: ok}}, "", nil},
		{"only wished for", []Check{{Name: "a", Probe: absent}, {Name: "b", Needed: true, Probe: ok}}, "", nil},
		{"missing", []Check{{Name: "a", Needed: true, Probe: ok}, {Name: "time namespaces", Needed: true, Without: newer, Probe: absent}},
			"check this machine: time namespaces: this kernel has no time namespaces (Linux 5.6 has): invalid argument; a newer kernel is needed", unum.ErrNoFeature},
		{"refused", []Check{{Name: "ptrace", Needed: true, Without: newer, Probe: func() error { return unix.EPERM }}},
			"check this machine: ptrace: operation not permitted; not permitted here, even to root: a container?", unix.EPERM},
		{"first of two", []Check{{Name: "root", Needed: true, Without: "run it as root: sudo", Probe: func() error { return ErrNotRoot }},
			{Name: "b", Needed: true, Probe: absent}}, "check this machine: root: not root; run it as root: sudo", ErrNotRoot},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Require(c.checks)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want == "":
			case err == nil || err.Error() != c.want || !errors.Is(err, c.is):
				t.Errorf("got %v\nwant %s", err, c.want)
			case strings.Contains(err.Error(), "\n"):
				t.Errorf("more than one line: %v", err)
			}
		})
	}
}

func TestTooOld(t *testing.T) {
	for _, v := range [][2]int{{6, 1}, {6, 18}, {7, 0}} {
		if err := tooOld(v[0], v[1]); err != nil {
			t.Errorf("%v: %v", v, err)
		}
	}
	for _, v := range [][2]int{{6, 0}, {5, 19}} {
		err := Require([]Check{{Name: "Linux", Needed: true, Without: newer, Probe: func() error { return tooOld(v[0], v[1]) }}})
		want := fmt.Sprintf("check this machine: Linux: this is Linux %d.%d, 6.1 is the oldest that works: kernel feature is missing; a newer kernel is needed", v[0], v[1])
		if err == nil || err.Error() != want || !errors.Is(err, unum.ErrNoFeature) {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
}

// The table of this machine: every check says what it is for and what happens
// without it, and every probe comes back.
func TestTable(t *testing.T) {
	for _, r := range Examine(Table()) {
		if r.Check.Name == "" || r.Check.For == "" || r.Check.Without == "" {
			t.Errorf("%+v says too little", r.Check)
		}
		if s := r.Status(); s == "failed" && os.Geteuid() == 0 {
			t.Errorf("%s: %v", r.Check.Name, r.Err)
		}
		t.Logf("%-8s %s %v", r.Status(), r.Check.Name, r.Err)
	}
}
