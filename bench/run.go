package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Options of a run.
type Options struct {
	Unum   string    // the built binary
	Cache  string    // directory for what is downloaded; made if missing
	Quick  bool      // about 3 minutes instead of 20
	Only   []string  // sections by their short names; all if empty
	Log    io.Writer // progress, one line each; nil discards
	Native bool      // leave out what needs unum: to try the rest
}

// bench is one run.
type bench struct {
	opt  Options
	self string // this program, where the world sees it too
	dir  string // everything temporary
	rep  Report
}

// sections in the order of the report, cheap ones first.
var sections = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{"exec", (*bench).execs},
	{"carry", (*bench).carry},
	{"local", (*bench).local},
	{"build", (*bench).capped},
}

// Run measures all sections. A section that fails leaves a row that says why,
// and the others go on; the error is for what makes a run pointless.
func Run(ctx context.Context, opt Options) (*Report, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("bench: must be root, as play must")
	}
	if opt.Log == nil {
		opt.Log = io.Discard
	}
	var err error
	if opt.Unum, err = filepath.Abs(opt.Unum); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(opt.Cache, 0o755); err != nil {
		return nil, err
	}
	b := &bench{opt: opt}
	// Not below /run, which is another one in the world.
	if b.dir, err = os.MkdirTemp("/var/tmp", "unum-bench-"); err != nil {
		return nil, err
	}
	defer os.RemoveAll(b.dir)
	if err := os.Chmod(b.dir, 0o755); err != nil {
		return nil, err
	}
	if err := b.copySelf(); err != nil {
		return nil, err
	}
	b.rep = Report{Machine: thisMachine(), Quick: opt.Quick, Started: time.Now()}
	if !opt.Native {
		out, err := exec.CommandContext(ctx, opt.Unum, "--version").CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("%s --version: %w: %s", opt.Unum, err, out)
		}
		b.rep.Version = strings.TrimSpace(strings.TrimPrefix(string(out), "unum version"))
	}
	for _, s := range sections {
		if !b.wanted(s.name) {
			continue
		}
		b.logf("%s …", s.name)
		if err := s.run(b, ctx); err != nil {
			b.rep.add(Row{Section: s.name, Name: s.name, Err: err.Error()})
			b.logf("%s: %v", s.name, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	b.rep.Took = time.Since(b.rep.Started)
	return &b.rep, ctx.Err()
}

func (b *bench) wanted(name string) bool {
	for _, o := range b.opt.Only {
		if o == name {
			return true
		}
	}
	return len(b.opt.Only) == 0
}

func (b *bench) logf(format string, args ...any) {
	fmt.Fprintf(b.opt.Log, "%s "+format+"\n", append([]any{time.Now().Format(time.TimeOnly)}, args...)...)
}

// pick returns the first for a full run, the second for a quick one.
func (b *bench) pick(full, quick int) int {
	if b.opt.Quick {
		return quick
	}
	return full
}

// copySelf puts this program where it can be executed natively and in the
// world by the same path.
func (b *bench) copySelf() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	data, err := os.ReadFile(self)
	if err != nil {
		return err
	}
	b.self = filepath.Join(b.dir, "unum-bench")
	return os.WriteFile(b.self, data, 0o755)
}
