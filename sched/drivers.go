package sched

import (
	"path"
	"strings"
)

// drivers start other commands and mostly wait for them. They stay where they
// are, and what they start is placed one by one: what descends from a placed
// process has less choice (Request.Guest, Request.Avoid), so a driver that went
// away would take the whole build from home.
var drivers = map[string]bool{
	"make": true, "gmake": true, "ninja": true, "samu": true, "cmake": true, "meson": true, "scons": true,
	"bazel": true, "cargo": true, "tup": true, "xargs": true, "parallel": true, "dpkg-buildpackage": true,
	"debuild": true, "ctest": true, "prove": true, "runtest": true,
}

// textLimit bounds how much of a program text is searched for drivers.
const textLimit = 4096

// drives says whether a command is a driver, or the text of a shell that calls
// one, such as the recipe of a recursive make.
func drives(file string, argv []string) bool {
	base := path.Base(file)
	if drivers[base] {
		return true
	}
	if kind, ok := interpreters[strip(base)]; !ok || kind != shell {
		return false
	}
	for i := 1; i+1 < len(argv); i++ {
		if !isText(argv[i], shell.text) {
			continue
		}
		text := argv[i+1]
		for w := range strings.FieldsFuncSeq(text[:min(len(text), textLimit)], notInWord) {
			if drivers[path.Base(w)] {
				return true
			}
		}
		return false
	}
	return false
}

func notInWord(r rune) bool {
	return !(r == '/' || r == '_' || r == '-' || r == '.' || r == '+' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z')
}
