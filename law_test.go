package unum_test

import (
	"bytes"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// rooms says which room may import which others of this module: the table of
// ARCHITECTURE.md. The root and sys are open to all, and a room to its own
// sub-rooms; what is not said here is forbidden.
var rooms = map[string][]string{
	"sys":     {},
	"wire":    {},
	"cluster": {},
	"sched":   {},
	"seccomp": {},
	"ptrace":  {"seccomp"},
	"deputy":  {"seccomp"},
	"world":   {"seccomp", "deputy"},
	"carry":   {},
	"rexec":   {"carry", "deputy", "ptrace", "seccomp", "sched"},
	"calls":   {"deputy", "ptrace", "seccomp"},
	"ctl":     {},
	"doctor":  {"world/cgroup"},

	"node/config":    {},
	"node/supervise": {"node/config", "world"},
	"node": {"calls", "carry", "cluster", "ctl", "deputy", "doctor", "ptrace", "rexec", "sched",
		"seccomp", "wire", "world"},
	"fsnode":   {"carry/file", "wire", "node/config"},
	"play":     {"node/config", "node/supervise", "world"},
	"unumtest": {"ctl", "play", "world/cgroup"},
	"bench":    {"play", "unumtest", "world/cgroup"},
	"cmd/unum": {"ctl", "doctor", "fsnode", "node", "play", "wire", "world"},
}

// pure rooms compute; they touch no system.
var pure = []string{"sched"}

// impure is what a pure room and the root may not import: whatever does I/O.
var impure = []string{"sys", "net", "os/exec", "syscall", "golang.org/x/sys/unix"}

// dialers are the only rooms that may open network connections: nodes share
// no kernel, so all that passes between them passes through wire. The
// coordination store is the exception, whose own connections wire carries.
var dialers = []string{"wire", "cluster/etcd"}

// listeners open the port that they hand to wire.
var listeners = []string{"node"}

// tools are no part of the product.
var tools = []string{"unumtest", "bench"}

type source struct {
	path string // relative to the root
	room string // longest key of rooms that contains it; "" for the root
	test bool
	file *ast.File
	text []byte
}

// sources parses every Go file of the module.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	fset := token.NewFileSet()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); path != "." && (strings.HasPrefix(n, ".") || n == "testdata") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(fset, path, text, parser.ParseComments)
		if err != nil {
			t.Errorf("%v", err)
			return nil
		}
		all = append(all, source{path: path, room: roomOf(filepath.Dir(path)),
			test: strings.HasSuffix(path, "_test.go"), file: f, text: text})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// roomOf returns the room of a folder, or the folder itself if it is in none.
func roomOf(dir string) string {
	if dir == "." {
		return ""
	}
	for d := dir; d != "."; d = filepath.Dir(d) {
		if _, ok := rooms[d]; ok {
			return d
		}
	}
	return dir
}

func imports(f *ast.File) []string {
	var out []string
	for _, i := range f.Imports {
		p, _ := strconv.Unquote(i.Path.Value)
		out = append(out, p)
	}
	return out
}

// within says whether folder a is b or below it.
func within(a, b string) bool { return a == b || strings.HasPrefix(a, b+"/") }

// Arrows run one way.
func TestImports(t *testing.T) {
	for _, s := range sources(t) {
		if s.test {
			continue // tests may set up what they like
		}
		if s.room == "first" {
			for _, imp := range imports(s.file) {
				if !slices.Contains([]string{"os", "strings", "syscall", "unsafe"}, imp) {
					t.Errorf("%s: first may not import %s: it would not be the first any more", s.path, imp)
				}
			}
			continue
		}
		allowed, known := rooms[s.room]
		if !known && s.room != "" {
			t.Errorf("%s: room %q is not in the table of law_test.go", s.path, s.room)
			continue
		}
		for _, imp := range imports(s.file) {
			p, ours := strings.CutPrefix(imp, "unum/")
			switch {
			case s.room == "" && (ours || slices.Contains(impure, imp)),
				slices.Contains(pure, s.room) && slices.Contains(impure, strings.TrimPrefix(imp, "unum/")):
				t.Errorf("%s: a pure room imports %s", s.path, imp)
			case !ours || p == "sys" && s.room != "sys" || within(p, s.room):
			case !slices.ContainsFunc(allowed, func(a string) bool { return within(p, a) }):
				t.Errorf("%s: %s may not import %s", s.path, s.room, p)
			}
		}
	}
}

// The page that people read says what the test holds.
func TestArchitectureTable(t *testing.T) {
	page, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile(`(?m)^\| ([a-z/, ]+?)(?: \(pure\))? \| `)
	told := map[string]bool{}
	for _, m := range row.FindAllStringSubmatch(string(page), -1) {
		for _, r := range strings.Split(m[1], ", ") {
			told[r] = true
		}
	}
	for r := range rooms {
		if r != "sys" && !told[r] && dirExists(r) {
			t.Errorf("ARCHITECTURE.md does not tell what %s imports", r)
		}
	}
}

func dirExists(d string) bool {
	fi, err := os.Stat(d)
	return err == nil && fi.IsDir()
}

// Nodes share no kernel: only wire (and the coordination store, through it)
// opens TCP; all others are given a Peer.
func TestNodesShareNoKernel(t *testing.T) {
	tcp := regexp.MustCompile(`^(DialTCP|ListenTCP|DialTimeout|FileListener|FileConn|Listen|Dial|DialUDP|ListenUDP|ListenPacket)$`)
	for _, s := range sources(t) {
		dir := filepath.Dir(s.path)
		in := func(rooms []string) bool {
			return slices.ContainsFunc(rooms, func(d string) bool { return within(dir, d) })
		}
		if s.test || in(tools) || in(dialers) {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			pkg, ok := sel.X.(*ast.Ident)
			if !ok || (pkg.Name != "net" && pkg.Name != "tls") || !tcp.MatchString(sel.Sel.Name) {
				return true
			}
			if len(call.Args) > 0 {
				if lit, ok := call.Args[0].(*ast.BasicLit); ok && strings.HasPrefix(lit.Value, `"unix`) {
					return true
				}
			}
			if sel.Sel.Name == "Listen" && in(listeners) {
				return true
			}
			t.Errorf("%s: %s.%s: only %s may open network connections", s.path, pkg.Name, sel.Sel.Name, strings.Join(dialers, " and "))
			return true
		})
		// Another node's directories are in reach in play, and nowhere else.
		if s.room == "play" || s.room == "ctl" || s.room == "cmd/unum" {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING && strings.Contains(lit.Value, "/run/unum/play") {
				t.Errorf("%s: %s: a daemon does not know the directories of a play", s.path, lit.Value)
			}
			return true
		})
	}
}

func TestGofmt(t *testing.T) {
	for _, s := range sources(t) {
		out, err := format.Source(s.text)
		if err != nil {
			t.Errorf("%s: %v", s.path, err)
		} else if !bytes.Equal(out, s.text) {
			t.Errorf("%s is not gofmt'ed", s.path)
		}
	}
}

// Files stay small enough to be read.
func TestFileSize(t *testing.T) {
	for _, s := range sources(t) {
		if n := bytes.Count(s.text, []byte("\n")); n > 800 {
			t.Errorf("%s has %d lines", s.path, n)
		}
	}
}

// unsafe is confined to sys, to what is written for one processor, and to files
// that say so by their name.
func TestUnsafeFiles(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || s.room == "sys" || strings.HasSuffix(s.path, "_unsafe.go") || strings.HasSuffix(s.path, "_amd64.go") {
			continue
		}
		if slices.Contains(imports(s.file), "unsafe") {
			t.Errorf("%s uses unsafe: move it to a file named *_unsafe.go", s.path)
		}
	}
}
