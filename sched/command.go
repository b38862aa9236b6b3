package sched

import (
	"path"
	"strings"
)

// Command names what an exec runs, for histories: the path of the program, and
// for an interpreter the script, module or the first word of its text with it.
// So `sh -c "gcc -c a.c"` and `sh -c "echo"` are two commands, and the recipes
// of one makefile rule are one.
func Command(file string, argv []string) string {
	base := path.Base(file)
	kind, ok := interpreters[strip(base)]
	if !ok {
		return file
	}
	args := argv
	if len(args) > 0 {
		args = args[1:]
	}
	for i := 0; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "--":
		case kind.module != "" && a == kind.module && i+1 < len(args):
			return base + " " + a + " " + short(args[i+1])
		case isText(a, kind.text):
			if i+1 < len(args) && args[i+1] == "--" {
				i++
			}
			if i+1 < len(args) {
				return base + " " + kind.text + " " + firstWord(args[i+1])
			}
			return file
		case strings.HasPrefix(a, "-") || strings.HasPrefix(a, "+"):
			if len(a) == 2 && strings.Contains(kind.takesArg, a[1:]) {
				i++
			}
		default:
			return base + " " + short(a)
		}
	}
	return file
}

// short bounds what a command line puts into the table.
func short(s string) string { return s[:min(len(s), 128)] }

// interpreter says how a command line of one names its program.
type interpreter struct {
	text     string // option whose argument is program text
	module   string // option whose argument names a module
	takesArg string // other single letters that take an argument
}

var (
	shell  = interpreter{text: "-c", takesArg: "oO"}
	python = interpreter{text: "-c", module: "-m", takesArg: "WX"}
	perl   = interpreter{text: "-e"}
)

var interpreters = map[string]interpreter{
	"sh": shell, "bash": shell, "dash": shell, "zsh": shell, "ksh": shell, "mksh": shell,
	"python": python, "pypy": python,
	"perl": perl, "ruby": perl, "node": perl, "nodejs": perl, "lua": perl,
	"php": {text: "-r", takesArg: "dc"}, "Rscript": perl, "guile": {text: "-c", takesArg: "Lelx"},
	"java": {module: "-jar"}, "tclsh": {}, "make": {takesArg: "CfIoW"},
}

// strip takes the version off: python3.11 is python.
func strip(base string) string { return strings.TrimRight(base, "0123456789.") }

// isText recognises the option with program text, alone or at the end of a
// cluster: -c, -ec, -lc.
func isText(a, text string) bool {
	return text != "" && len(a) >= 2 && a[0] == '-' && a[1] != '-' && a[len(a)-1] == text[1] &&
		strings.Trim(a[1:], "abcefhiklmnprstuvxBCEHP") == ""
}

// firstWord returns what the program text begins with: the name of a command
// without its directory, of an assignment, of a keyword; the script, if the
// command is a shell.
func firstWord(text string) string {
	for range 4 {
		text = strings.TrimLeft(text, " \t\n@-+({")
		w := text
		if i := strings.IndexAny(w, " \t\n;|&<>(`\"'$="); i >= 0 {
			w, text = w[:i], w[i:]
		} else {
			text = ""
		}
		if len(w) > 64 {
			w = w[:64]
		}
		word := path.Base(w)
		if _, ok := interpreters[strip(word)]; !ok && word != "exec" && word != "time" && word != "env" {
			return word
		}
		if strings.TrimLeft(text, " \t") == "" {
			return word
		}
	}
	return ""
}
