// Package behave is the suite that holds the first law: as on one machine.
//
// A case is a small script, sometimes with a dialogue on a terminal, written
// down in testdata/*.cases. Each case runs natively, as its own control, and
// then in a play: at home, with its children placed on other nodes, and with
// the script itself placed too. What a user could see of it (standard output
// and error, the exit status or signal, the files it made, with their modes
// and owners) must be the same each time, and the control must be what the
// case says.
//
// All runs of a case use the same scratch directory, one after the other, so
// that paths need no normalising. In the play the cases are run by a driver,
// the test binary itself as the play's command.
//
//	go test ./unumtest/behave                        # all of it
//	go test ./unumtest/behave -run Native            # the control alone, without a play
//	UNUM_BEHAVE_ONLY='^jobs/' go test ./unumtest/behave
//	UNUM_BEHAVE_MODES=home,placed go test ./unumtest/behave
//	UNUM_BEHAVE_TIMEOUT=10s UNUM_BEHAVE_REPORT=/tmp/report go test ./unumtest/behave
//	UNUM_BIN=/tmp/unum go test ./unumtest/behave     # a binary built before
package behave

import (
	"bufio"
	"bytes"
	"embed"
	"fmt"
	"io/fs"
	"regexp"
	"sort"
	"strings"
	"time"
)

// Mode is where a case runs.
type Mode string

const (
	Native Mode = "native" // outside of any world: the control
	Home   Mode = "home"   // in the world, nothing placed
	Placed Mode = "placed" // the script at home, its children always on another node
	Nested Mode = "nested" // the script on another node, its children again on others
)

// Case is one script and what is known of its outcome.
type Case struct {
	Name   string
	Where  string // file:line, for messages
	Shell  string // bash, dash or python3
	Script string
	Tty    []string // dialogue; nil for a case without a terminal

	Stdout *string // nil: whatever the control says
	Stderr *string // nil: nothing, unless AnyStderr
	Status string  // "exit 0", "signal SIGTERM", ...

	AnyStderr bool            // standard error is compared between the runs only
	OutFile   bool            // standard output and error are one file, not two pipes
	Edit      bool            // bash with readline, in a dialogue
	User      string          // run as this user
	Stays     string          // why nothing of it is ever placed
	Unseen    string          // why its placements cannot be attributed to it
	Not       map[Mode]string // modes that make no sense for the case, and why
	Norm      []Norm          // applied to the output before it is compared
	Timeout   time.Duration   // of one run
	Needs     []string        // programs without which the case cannot run
}

// Norm replaces what legitimately differs, such as PIDs.
type Norm struct {
	Re   *regexp.Regexp
	With string
}

//go:embed testdata
var testdata embed.FS

// Load reads every case, sorted by file and line.
func Load() ([]*Case, error) {
	names, err := fs.Glob(testdata, "testdata/*.cases")
	if err != nil {
		return nil, err
	}
	sort.Strings(names)
	var all []*Case
	have := map[string]string{}
	for _, n := range names {
		b, err := testdata.ReadFile(n)
		if err != nil {
			return nil, err
		}
		cs, err := Parse(n, b)
		if err != nil {
			return nil, err
		}
		for _, c := range cs {
			if at := have[c.Name]; at != "" {
				return nil, fmt.Errorf("%s: case %s is already at %s", c.Where, c.Name, at)
			}
			have[c.Name] = c.Where
		}
		all = append(all, cs...)
	}
	return all, nil
}

// Parse reads a file of cases:
//
//	# a comment, only before the first case
//	=== topic/name key=value key="a value"
//	the script
//	--- stdout
//	what it writes
//	--- status exit 3
//
// Keys: sh=bash,dash makes one case for each; out=file; stderr=any; user=NAME;
// edit=yes; timeout=30s; stays="reason"; unseen="reason"; not-MODE="reason"; needs=prog,prog
// ("cores" is no program, but leave to dump them);
// norm=/regexp/text/ (as often as wanted, "pid" is short for every number of
// two to seven digits). Sections: stdout, stderr, status, tty.
func Parse(name string, b []byte) ([]*Case, error) {
	var out []*Case
	var cur *Case
	var shells []string
	section := ""
	var text []string
	closeSection := func() error {
		if cur == nil {
			return nil
		}
		s := strings.Join(text, "\n")
		if s != "" {
			s += "\n"
		}
		text = nil
		switch section {
		case "script":
			cur.Script = s
		case "stdout":
			cur.Stdout = &s
		case "stderr":
			cur.Stderr = &s
		case "tty":
			for _, l := range strings.Split(s, "\n") {
				if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "#") {
					cur.Tty = append(cur.Tty, l)
				}
			}
		}
		return nil
	}
	finish := func() {
		if cur == nil {
			return
		}
		closeSection()
		for _, sh := range shells {
			c := *cur
			c.Shell = sh
			if len(shells) > 1 {
				c.Name += "," + sh
			}
			out = append(out, &c)
		}
	}
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, 1<<20)
	for n := 1; sc.Scan(); n++ {
		line := sc.Text()
		at := fmt.Sprintf("%s:%d", name, n)
		switch {
		case strings.HasPrefix(line, "=== "):
			finish()
			words, err := splitWords(line[4:])
			if err != nil || len(words) == 0 {
				return nil, fmt.Errorf("%s: bad case line: %v", at, err)
			}
			cur = &Case{Name: words[0], Where: at, Status: "exit 0", Timeout: 60 * time.Second, Not: map[Mode]string{}}
			shells = []string{"bash"}
			section = "script"
			for _, w := range words[1:] {
				k, v, _ := strings.Cut(w, "=")
				if err := cur.set(k, v, &shells); err != nil {
					return nil, fmt.Errorf("%s: %w", at, err)
				}
			}
		case strings.HasPrefix(line, "--- ") && cur != nil:
			closeSection()
			k, v, _ := strings.Cut(line[4:], " ")
			section = k
			switch k {
			case "status":
				cur.Status = v
			case "stdout", "stderr", "tty":
			default:
				return nil, fmt.Errorf("%s: no section is called %q", at, k)
			}
		case cur == nil:
			if line != "" && !strings.HasPrefix(line, "#") {
				return nil, fmt.Errorf("%s: text before the first case", at)
			}
		default:
			text = append(text, line)
		}
		if cur != nil && len(text) > 0 && section == "status" && line == "" {
			text = nil
		}
	}
	finish()
	for _, c := range out {
		// The blank line before the next case is no part of a section.
		c.Script = trimTail(c.Script)
		for _, s := range []**string{&c.Stdout, &c.Stderr} {
			if *s != nil {
				v := trimTail(**s)
				*s = &v
			}
		}
	}
	return out, sc.Err()
}

func trimTail(s string) string {
	for strings.HasSuffix(s, "\n\n") {
		s = s[:len(s)-1]
	}
	if s == "\n" {
		return ""
	}
	return s
}

func (c *Case) set(k, v string, shells *[]string) error {
	switch k {
	case "sh":
		*shells = strings.Split(v, ",")
	case "out":
		c.OutFile = v == "file"
	case "stderr":
		c.AnyStderr = v == "any"
	case "user":
		c.User = v
	case "edit":
		c.Edit = v == "yes"
	case "unseen":
		c.Unseen = v
	case "stays":
		c.Stays = v
	case "needs":
		c.Needs = strings.Split(v, ",")
	case "timeout":
		d, err := time.ParseDuration(v)
		if err != nil {
			return err
		}
		c.Timeout = d
	case "norm":
		if v == "pid" {
			v = `/\b[0-9]{2,7}\b/N/`
		}
		p := strings.Split(v, v[:1])
		if len(p) != 4 {
			return fmt.Errorf("norm wants /regexp/text/, not %q", v)
		}
		re, err := regexp.Compile(p[1])
		if err != nil {
			return err
		}
		c.Norm = append(c.Norm, Norm{re, p[2]})
	default:
		if m, ok := strings.CutPrefix(k, "not-"); ok {
			c.Not[Mode(m)] = v
			return nil
		}
		return fmt.Errorf("no key is called %q", k)
	}
	return nil
}

// splitWords splits at blanks; a double-quoted stretch may hold some.
func splitWords(s string) ([]string, error) {
	var words []string
	var w strings.Builder
	in, quoted := false, false
	for _, r := range s {
		switch {
		case r == '"':
			quoted, in = !quoted, true
		case r == ' ' && !quoted:
			if in {
				words = append(words, w.String())
				w.Reset()
				in = false
			}
		default:
			w.WriteRune(r)
			in = true
		}
	}
	if quoted {
		return nil, fmt.Errorf("a quote is open")
	}
	if in {
		words = append(words, w.String())
	}
	return words, nil
}
