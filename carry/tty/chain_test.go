package tty

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unum/sys"
)

// A body that places its children elsewhere: n1's terminal reaches n3 through n2.
func TestChain(t *testing.T) {
	both(t, func(t *testing.T, s *shell) {
		if got := s.run("placed sh -c 'placed echo a; echo b; placed echo c'"); got != "a\r\nb\r\nc\r\n" {
			t.Fatalf("%q", got)
		}
		s.send("placed sh -c 'placed cat; echo over'\n")
		s.expect("over'\r\n")
		for range 3 {
			s.send("x\n")
			s.expect("x\r\nx\r\n")
		}
		s.settle("cat")
		s.send("\x1a")
		s.expect("topped")
		s.expect("$ ")
		time.Sleep(200 * time.Millisecond) // until the whole chain has stopped
		s.send("fg\n")
		s.expect("fg\r\n")
		s.expect("over")
		s.expect("\r\n")
		s.send("y\n")
		s.expect("y\r\ny\r\n")
		s.send("\x04")
		s.expect("over\r\n$ ")
		s.send("placed sh -c 'placed sleep 30'\n")
		s.expect("30'\r\n")
		s.settle("sleep")
		s.send("\x03")
		s.expect("$ ")
		if got := s.run("echo $?"); got != "130\r\n" {
			t.Fatalf("%q", got)
		}
	})
}

func TestChainModes(t *testing.T) {
	s := newRig(t).bash()
	if got := s.run("placed sh -c 'placed stty -echo; stty -a' | grep -o -e ' -echo '; stty echo; placed sh -c 'placed stty size'"); got != " -echo \r\n24 80\r\n" {
		t.Fatalf("%q", got)
	}
	s.send("placed sh -c 'placed ttybody raw'\n")
	s.expect("\nraw\r\n")
	for range 10 {
		s.send("k")
		s.expect("k")
	}
	s.quiet(20 * time.Millisecond)
	s.send("q")
	s.expect("$ ")
	s.send("placed sh -c \"placed sh -c 'trap \\\"stty size\\\" WINCH; echo up; while :; do sleep 0.05; done'\"\n")
	s.expect("\nup\r\n")
	if err := sys.SetTtySize(rawFD(s.tty), &unix.Winsize{Row: 50, Col: 132}); err != nil {
		t.Fatal(err)
	}
	s.expect("50 132\r\n")
	s.send("\x03")
	s.expect("$ ")
}

func TestChainUnread(t *testing.T) {
	s := newRig(t).bash()
	s.send("placed sh -c 'placed head -n 1; placed dd bs=1 count=2 2>/dev/null; read a; echo got $a'; cat; echo end\n")
	s.expect("echo end\r\n")
	s.send("l1\nl2\nl3\nl4\n\x04")
	s.expect("l4\r\nl1\r\n") // the echo and head's
	s.expect("l2got\r\n")
	s.expect("l3\r\nl4\r\nend\r\n$ ")
}

func TestChainVim(t *testing.T) {
	needs(t, "vim")
	s := newRig(t).bash()
	s.send("placed sh -c 'placed vim -u NONE -N f'\n")
	s.expect("\x1b[?1049h")
	time.Sleep(300 * time.Millisecond)
	s.send("ihello\x1b")
	s.expect("hello")
	s.send(":wq\r")
	s.expect("$ ")
	if got := s.run("cat f"); got != "hello\r\n" {
		t.Fatalf("%q", got)
	}
}
