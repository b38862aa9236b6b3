package behave

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"syscall"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Result is everything of a run that its user could see.
type Result struct {
	Status string // "exit 3", "signal SIGSEGV core"
	Stdout []byte
	Stderr []byte
	Files  map[string]string // path below the scratch directory -> mode, owner, content
	Pid    int               // of the script, as its world names it
	Hang   string            // what the run looked like when its time was up
	Fault  string            // the dialogue or the set-up failed: how
}

// StatusOf puts a wait status into words.
func StatusOf(ws syscall.WaitStatus) string {
	switch {
	case ws.Exited():
		return fmt.Sprintf("exit %d", ws.ExitStatus())
	case ws.Signaled() && ws.CoreDump():
		return "signal " + unix.SignalName(ws.Signal()) + " core"
	case ws.Signaled():
		return "signal " + unix.SignalName(ws.Signal())
	}
	return fmt.Sprintf("wait status %#x", int(ws))
}

// snapshot describes every file below dir. Core files are described by their
// name alone: their content never is the same twice.
func snapshot(dir string) (map[string]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		fi, err := os.Lstat(p)
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		s := fmt.Sprintf("%v %d:%d", fi.Mode(), st.Uid, st.Gid)
		switch {
		case rel == "core" || strings.HasPrefix(filepath.Base(rel), "core."):
			s = "a core"
		case fi.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			if len(b) > 4096 || !utf8.Valid(b) {
				s += fmt.Sprintf(" %d bytes, sha256 %x", len(b), sha256.Sum256(b))
			} else {
				s += "\n" + string(b)
			}
		case fi.Mode()&fs.ModeSymlink != 0:
			t, _ := os.Readlink(p)
			s += " -> " + t
		}
		files[rel] = s
		return nil
	})
	return files, err
}

// Diff says in which ways got differs from want, in lines; "" if in none.
func Diff(c *Case, want, got *Result) string {
	var b strings.Builder
	if got.Fault != "" {
		fmt.Fprintf(&b, "%s\n", got.Fault)
	}
	if got.Hang != "" {
		fmt.Fprintf(&b, "hung after %v\n%s\n", c.Timeout, got.Hang)
	}
	if want.Status != got.Status {
		fmt.Fprintf(&b, "status: want %s, got %s\n", want.Status, got.Status)
	}
	text := func(what string, w, g []byte) {
		ws, gs := c.normal(w), c.normal(g)
		if ws != gs {
			fmt.Fprintf(&b, "%s:\n%s", what, lineDiff(ws, gs))
		}
	}
	if c.Tty == nil {
		text("stdout", want.Stdout, got.Stdout)
		text("stderr", want.Stderr, got.Stderr)
	}
	names := map[string]bool{}
	for n := range want.Files {
		names[n] = true
	}
	for n := range got.Files {
		names[n] = true
	}
	var sorted []string
	for n := range names {
		sorted = append(sorted, n)
	}
	sort.Strings(sorted)
	for _, n := range sorted {
		w, inW := want.Files[n]
		g, inG := got.Files[n]
		switch {
		case !inG:
			fmt.Fprintf(&b, "file %s is missing\n", n)
		case !inW:
			fmt.Fprintf(&b, "file %s should not be there: %s\n", n, head(g, 200))
		case c.normal([]byte(w)) != c.normal([]byte(g)):
			fmt.Fprintf(&b, "file %s:\n%s", n, lineDiff(c.normal([]byte(w)), c.normal([]byte(g))))
		}
	}
	if b.Len() > 0 && c.Tty != nil {
		fmt.Fprintf(&b, "the terminal showed:\n%s\n", indent(string(got.Stdout)))
	}
	return b.String()
}

// Expect is what the case itself says of its outcome, taking from got what it
// leaves open.
func (c *Case) Expect(got *Result) *Result {
	w := *got
	w.Status, w.Hang, w.Fault = c.Status, "", ""
	if c.Stdout != nil {
		w.Stdout = []byte(*c.Stdout)
	}
	switch {
	case c.Stderr != nil:
		w.Stderr = []byte(*c.Stderr)
	case !c.AnyStderr:
		w.Stderr = nil
	}
	return &w
}

func (c *Case) normal(b []byte) string {
	s := jobPid.ReplaceAllString(string(b), "line $1: PID ")
	for _, n := range c.Norm {
		s = n.Re.ReplaceAllString(s, n.With)
	}
	return s
}

// jobPid is how bash begins its report of a killed job.
var jobPid = regexp.MustCompile(`\bline (\d+): +\d+ `)

// lineDiff shows the first stretch of lines in which a and b differ.
func lineDiff(a, b string) string {
	la, lb := strings.SplitAfter(a, "\n"), strings.SplitAfter(b, "\n")
	i := 0
	for i < len(la) && i < len(lb) && la[i] == lb[i] {
		i++
	}
	ea, eb := len(la), len(lb)
	for ea > i && eb > i && la[ea-1] == lb[eb-1] {
		ea--
		eb--
	}
	var out strings.Builder
	fmt.Fprintf(&out, "  at line %d of %d (want), %d (got)\n", i+1, len(la), len(lb))
	show := func(sign string, l []string) {
		for n, s := range l {
			if n == 12 {
				fmt.Fprintf(&out, "  %s … %d lines more\n", sign, len(l)-n)
				break
			}
			if s != "" {
				fmt.Fprintf(&out, "  %s %s\n", sign, head(fmt.Sprintf("%q", s), 300))
			}
		}
	}
	show("-", la[i:ea])
	show("+", lb[i:eb])
	return out.String()
}

func head(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

func indent(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n    ")
}
