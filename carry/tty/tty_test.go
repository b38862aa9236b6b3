package tty

import (
	"testing"
)

func TestOutput(t *testing.T) {
	s := newRig(t).bash()
	if got := s.run("placed echo hello"); got != "hello\r\n" {
		t.Fatalf("%q", got)
	}
	if got := s.run(`placed printf 'a\r\nb\n\r'; placed sh -c 'exit 7'; echo $?`); got != "a\r\r\nb\r\n\r7\r\n" {
		t.Fatalf("%q", got)
	}
}

func TestCanonicalLines(t *testing.T) {
	s := newRig(t).bash()
	s.send("placed cat\n")
	s.expect("placed cat\r\n")
	s.send("one\n")
	s.expect("one\r\none\r\n")
	s.send("twx\x7fo\n")
	s.expect("twx\b \bo\r\ntwo\r\n")
	s.send("\x04")
	s.expect("$ ")
}
