package tty

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/sys"
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

// both runs a test in bash and in dash.
func both(t *testing.T, fn func(t *testing.T, s *shell)) {
	t.Run("bash", func(t *testing.T) { fn(t, newRig(t).bash()) })
	t.Run("dash", func(t *testing.T) {
		r := newRig(t)
		r.early = true
		fn(t, r.dash())
	})
}

func TestInterrupt(t *testing.T) {
	both(t, func(t *testing.T, s *shell) {
		s.send("placed sleep 30\n")
		s.expect("placed sleep 30\r\n")
		s.settle("sleep")
		s.send("\x03")
		s.expect("^C")
		s.expect("$ ")
		if got := s.run("echo $?"); got != "130\r\n" {
			t.Fatalf("%q", got)
		}
		s.send("placed sh -c 'trap \"echo int\" INT; sleep 30; echo over'\n")
		s.expect("over'\r\n")
		s.settle("sleep")
		s.send("\x03")
		s.expect("^Cint\r\nover\r\n")
		s.expect("$ ")
		s.send("placed sleep 30\n")
		s.expect("30\r\n")
		s.settle("sleep")
		s.send("\x1c")
		s.expect("^\\")
		s.expect("$ ")
		if got := s.run("echo $?"); got != "131\r\n" {
			t.Fatalf("%q", got)
		}
	})
}

// settle waits until the guest runs a process of that name in the foreground.
func (s *shell) settle(comm string) {
	s.t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		s.r.mu.Lock()
		var group []int
		for _, b := range s.r.bodies {
			group = append(group, b.pid)
		}
		s.r.mu.Unlock()
		pids, _ := worldPids()
		for _, p := range pids {
			j, err := sys.ReadJob(p, nil)
			if err != nil || !slices.Contains(group, j.Pgrp) {
				continue
			}
			if b, err := os.ReadFile("/proc/" + strconv.Itoa(p) + "/comm"); err == nil && string(b) == comm+"\n" {
				return
			}
		}
	}
	s.t.Fatalf("no %s at the guest", comm)
}

// TestInterruptOnce: two deputies of one group, one key, one signal each.
func TestInterruptOnce(t *testing.T) {
	s := newRig(t).bash()
	prog := `n=0; trap "n=\$((n+1))" INT; echo up $0 >&2; i=0; while [ $i -lt 40 ]; do sleep 0.05; i=$((i+1)); done; echo $0 $n >&2`
	s.send("placed sh -c '" + prog + "' A | placed sh -c '" + prog + "' B\n")
	s.expect("' B\r\n")
	s.expect("up ")
	s.expect("up ")
	time.Sleep(50 * time.Millisecond)
	s.send("\x03")
	time.Sleep(300 * time.Millisecond)
	s.send("\x03")
	out := s.expect("$ ")
	if !strings.Contains(out, "A 2\r\n") || !strings.Contains(out, "B 2\r\n") {
		t.Fatalf("%q", out)
	}
}

func TestStopAndContinue(t *testing.T) {
	both(t, func(t *testing.T, s *shell) {
		s.send("placed cat\n")
		s.expect("placed cat\r\n")
		s.send("a\n")
		s.expect("a\r\na\r\n")
		for range 3 {
			s.send("\x1a")
			s.expect("^Z")
			s.expect("topped")
			s.expect("$ ")
			if got := s.run("echo here"); got != "here\r\n" {
				t.Fatalf("%q", got)
			}
			s.fg("cat", "b")
		}
		s.send("\x04")
		s.expect("$ ")
		if got := s.run("echo $?"); got != "0\r\n" {
			t.Fatalf("%q", got)
		}
	})
}

func TestBackgroundRead(t *testing.T) {
	both(t, func(t *testing.T, s *shell) {
		s.send("placed cat &\n")
		s.expect("cat &\r\n")
		s.expect("$ ")
		s.settle("cat")
		s.send("\n")
		time.Sleep(200 * time.Millisecond)
		s.send("jobs\n")
		s.expect("jobs\r\n")
		s.expect("topped")
		s.expect("$ ")
		s.send("fg\n")
		s.expect("cat\r\n")
		s.send("x\n")
		s.expect("x\r\nx\r\n")
		s.send("\x04")
		s.expect("$ ")
	})
}

// TestForegroundRunning: fg of a job that never stopped sends no SIGCONT.
func TestForegroundRunning(t *testing.T) {
	s := newRig(t).bash()
	s.send("placed sh -c 'sleep 0.6; exec cat' &\n")
	s.expect("cat' &\r\n")
	s.expect("$ ")
	s.settle("sleep")
	s.fg("cat'", "x")
	s.send("\x04")
	s.expect("$ ")
}

func TestTostop(t *testing.T) {
	s := newRig(t).bash()
	if got := s.run("placed echo a & wait; stty tostop"); !strings.Contains(got, "a\r\n") {
		t.Fatalf("%q", got)
	}
	s.send("placed echo held &\n")
	s.expect("held &\r\n")
	s.expect("$ ")
	time.Sleep(200 * time.Millisecond)
	s.send("jobs\n")
	s.expect("topped")
	s.expect("$ ")
	s.send("fg\n")
	s.expect("held\r\n") // bash names the job
	s.expect("held\r\n")
	s.expect("$ ")
}

func TestSize(t *testing.T) {
	s := newRig(t).bash()
	if got := s.run("placed stty size"); got != "24 80\r\n" {
		t.Fatalf("%q", got)
	}
	s.send("placed sh -c 'trap \"stty size\" WINCH; echo up; while :; do sleep 0.05; done'\n")
	s.expect("done'\r\n")
	s.expect("up\r\n")
	if err := sys.SetTtySize(rawFD(s.tty), &unix.Winsize{Row: 50, Col: 132}); err != nil {
		t.Fatal(err)
	}
	s.expect("50 132\r\n")
	s.quiet(150 * time.Millisecond)
	s.send("\x03")
	s.expect("$ ")
	if got := s.run("placed stty rows 33; stty size; placed stty size"); got != "33 132\r\n33 132\r\n" {
		t.Fatalf("%q", got)
	}
}

// TestSizeWhileOpen: what is set while nobody in the foreground hears of it is
// there for the next body, although another has the terminal open.
func TestSizeWhileOpen(t *testing.T) {
	s := newRig(t).bash()
	s.run("placed sh -c ': > up; exec sleep 1000' &")
	s.run("while [ ! -e up ]; do sleep 0.01; done")
	for row := range uint16(5) {
		if err := sys.SetTtySize(rawFD(s.tty), &unix.Winsize{Row: 50 + row, Col: 132}); err != nil {
			t.Fatal(err)
		}
		if got, want := s.run("placed stty size"), fmt.Sprintf("%d 132\r\n", 50+row); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	s.run("kill %1")
}

func TestIsTerminal(t *testing.T) {
	s := newRig(t).bash()
	got := s.run("placed sh -c 'test -t 0 && test -t 1 && test -t 2 && echo x >/dev/tty && echo y' </dev/tty")
	if got != "x\r\ny\r\n" {
		t.Fatalf("%q", got)
	}
	if home, guest := s.run("tty"), s.run("placed tty"); !strings.HasPrefix(guest, "/dev/pts/") {
		t.Fatalf("%q at home, %q at the guest", home, guest)
	}
	// Nothing of the terminal but the session.
	s.send("placed sh -c 'echo z >/dev/tty; read a </dev/tty; echo $a >/dev/tty' </dev/null >/dev/null 2>&1\n")
	s.expect("2>&1\r\nz\r\n")
	s.send("w\n")
	s.expect("w\r\nw\r\n$ ")
}

func TestTypeAhead(t *testing.T) {
	both(t, func(t *testing.T, s *shell) {
		s.send("placed sleep 0.4\necho one\necho two; cat\nthree\n\x04echo four\n")
		s.expect("$ ")
		out := s.expect("four\r\n$ ")
		for _, want := range []string{"one\r\n", "two\r\n", "three\r\n"} {
			if !strings.Contains(out, want) {
				t.Fatalf("no %q in %q", want, out)
			}
		}
		s.quiet(50 * time.Millisecond)
	})
}

// TestUnread: what a body has got and not read is the next reader's.
func TestUnread(t *testing.T) {
	both(t, func(t *testing.T, s *shell) {
		// read takes byte by byte, head in blocks; the rest is cat's.
		s.send("placed head -n 1; placed sh -c 'read a; echo got $a'; placed dd bs=1 count=2 2>/dev/null; cat; echo end\n")
		s.expect("echo end\r\n")
		s.send("l1\nl2\nl3\nl4\n\x04")
		out := s.expect("end\r\n$ ")
		i := strings.LastIndex(out, "l1\r\n")
		if want := "got l2\r\n"; i < 0 || !strings.Contains(out[i:], want) {
			t.Fatalf("no %q in %q", want, out)
		}
		if rest := out[strings.Index(out, "got l2\r\n")+8:]; !strings.HasSuffix(rest, "l3\r\nl4\r\nend\r\n$ ") || strings.Count(rest, "l4") != 1 {
			t.Fatalf("%q", out)
		}
	})
}

func TestModes(t *testing.T) {
	s := newRig(t).bash()
	if got := s.run("placed stty -echo; stty -a | grep -o -e '-echo '; stty echo; placed stty -a | grep -o ' echo '"); got != "-echo \r\n echo \r\n" {
		// With echo off the prompt's line is not echoed; the shell turns it on.
		t.Fatalf("%q", got)
	}
	s.send("placed sh -c 'stty -echo; echo ask; read a; stty echo; echo got $a'\n")
	s.expect("ask\r\n")
	s.send("secret\n")
	if got := s.expect("$ "); got != "got secret\r\n$ " {
		t.Fatalf("%q", got)
	}
	s.run("stty sane")
	for _, mode := range []string{"-onlcr", "-opost", "onlcr opost"} {
		want := s.run("stty " + mode + "; stty -a; stty sane")
		got := s.run("placed stty " + mode + "; stty -a; stty sane")
		if n := strings.NewReplacer("\r", "", "$ ", ""); n.Replace(got) != n.Replace(want) {
			t.Errorf("stty %s: %q, want %q", mode, got, want)
		}
		s.run("stty sane")
	}
}

func TestFloodAndInterrupt(t *testing.T) {
	s := newRig(t).bash()
	s.send("placed yes\n")
	for range 5 {
		s.expect("y\r\ny\r\n")
	}
	s.send("\x03")
	s.expect("^C")
	// What was written before the key: a pty's buffers and a window's worth.
	if n := len(s.expect("$ ")); n > 1<<20 {
		t.Errorf("prompt after %d bytes", n)
	} else {
		t.Logf("prompt after %d bytes", n)
	}
	if got := s.run("echo ok"); got != "ok\r\n" {
		t.Fatalf("%q", got)
	}
}

func TestAllOutput(t *testing.T) {
	s := newRig(t).bash()
	s.send("placed seq 1 20000; echo end\n")
	s.expect("echo end\r\n")
	if out, want := s.expect("end\r\n"), numbers(20000)+"end\r\n"; out != want {
		t.Fatalf("%d bytes, want %d", len(out), len(want))
	}
}

func TestLostLink(t *testing.T) {
	r := newRig(t)
	s := r.bash()
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(15 * time.Millisecond):
				r.net.cut()
			}
		}
	}()
	s.send("placed seq 1 20000; placed cat; echo end\n")
	s.expect("echo end\r\n")
	out := s.within(20*time.Second, "20000\r\n")
	if n := strings.Count(out, "\r\n"); n != 20000 {
		t.Errorf("%d lines", n)
	}
	for range 20 {
		s.send("abc\n")
		s.expect("abc\r\nabc\r\n")
	}
	s.send("\x04")
	s.expect("end\r\n")
	close(stop)
	<-done
}

func TestHangUp(t *testing.T) {
	r := newRig(t)
	s := r.bash()
	s.send("placed sh -c 'trap \"\" HUP; echo up; cat; echo x || touch " + r.dir + "/eio'\n")
	s.expect("up\r\n")
	s.tty.Close()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(r.dir + "/eio"); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the body saw no hang-up")
		}
	}
}

func TestChildOutlives(t *testing.T) {
	s := newRig(t).bash()
	if got := s.run("placed sh -c '(sleep 0.6; echo late) & echo early'"); got != "early\r\n" {
		t.Fatalf("%q", got)
	}
	s.expect("late\r\n")
}

// TestClosed: nobody but the shell has the terminal open once a job is over.
func TestClosed(t *testing.T) {
	r := newRig(t)
	s := r.bash()
	s.run("placed echo x")
	s.send("exit\n")
	done := make(chan error, 1)
	go func() { done <- s.cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("the shell does not end")
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s.mu.Lock()
		eof := s.eof
		s.mu.Unlock()
		if eof {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the terminal stays open")
		}
	}
}

func TestSetsid(t *testing.T) {
	s := newRig(t).bash()
	if got := s.run("setsid -w placed sh -c 'echo a; test -t 1 && echo b; echo c 2>/dev/null >/dev/tty || echo none'"); got != "a\r\nb\r\nnone\r\n" {
		t.Fatalf("%q", got)
	}
}

func TestTwoJobs(t *testing.T) {
	both(t, func(t *testing.T, s *shell) {
		for _, j := range []string{"a", "b"} {
			// bash, since dash uses vfork: a child that is stopped before its exec
			// keeps its parent from stopping.
			cmd := "placed bash -c 'echo up; while [ ! -e go ]; do sleep 0.05; done; echo fin" + j + "'\n"
			s.send(cmd)
			s.expect(cmd[:len(cmd)-1] + "\r\nup\r\n")
			s.stop("$ ")
		}
		s.send(": > go; fg %1\n")
		s.expect("\r\nfina\r\n")
		s.expect("$ ")
		s.send("fg %2\n")
		s.expect("\r\nfinb\r\n")
		s.expect("$ ")
	})
}

// TestGuestRestart: the guest's daemon is replaced while a body writes and reads.
func TestGuestRestart(t *testing.T) {
	r := newRig(t)
	s := testRestart(t, r, func() { r.restart("n2") })
	if left, _ := os.ReadDir(r.configs["n2"].StateDir); len(left) != 1 {
		t.Errorf("%d pages", len(left))
	}
	r.kinds["n2"].Guests.EndSession("n1", unum.Pid(s.cmd.Process.Pid))
	if left, _ := os.ReadDir(r.configs["n2"].StateDir); len(left) != 0 {
		t.Errorf("%d pages are left", len(left))
	}
}

// TestHomeRestart: home's daemon is replaced while a body writes and reads.
func TestHomeRestart(t *testing.T) {
	r := newRig(t)
	testRestart(t, r, func() { r.restartHome("n1") })
}

// testRestart does what a body on a terminal does, with a daemon replaced in
// between each time.
func testRestart(t *testing.T, r *rig, restart func()) *shell {
	r.keep()
	s := r.bash()
	s.send("placed sh -c 'seq 1 20000; exec cat'\n")
	s.expect("cat'\r\n")
	var out strings.Builder
	for i := 1; i <= 10; i++ {
		out.WriteString(s.expect("\r\n" + strconv.Itoa(i*1500) + "\r\n"))
		restart()
	}
	out.WriteString(s.expect("\r\n20000\r\n"))
	if want := numbers(20000); out.String() != want {
		t.Errorf("%d bytes, want %d", out.Len(), len(want))
	}
	for range 5 {
		restart()
		s.send("abc\n")
		s.expect("abc\r\nabc\r\n")
	}
	restart()
	s.stop("$ ")
	restart()
	s.fg("cat'", "x")
	s.send("\x03")
	s.expect("$ ")
	if got := s.run("placed echo again"); got != "again\r\n" {
		t.Errorf("%q", got)
	}
	return s
}

// numbers is what seq 1 n prints on a terminal.
func numbers(n int) string {
	var b strings.Builder
	for i := 1; i <= n; i++ {
		b.WriteString(strconv.Itoa(i) + "\r\n")
	}
	return b.String()
}

// stop stops the foreground job by its key.
func (s *shell) stop(prompt string) {
	s.t.Helper()
	s.send("\x1a")
	s.expect("topped")
	s.expect(prompt)
}

// fg continues a cat, whose command ends in that, and sends it a line.
func (s *shell) fg(command, line string) {
	s.t.Helper()
	s.send("fg\n")
	s.expect("fg\r\n")
	s.expect(command + "\r\n")
	s.send(line + "\n")
	s.expect(line + "\r\n" + line + "\r\n")
}
