package tty

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Ways to wait for input, each natively first.
func TestReaders(t *testing.T) {
	for _, how := range []string{"read", "poll", "polls", "select", "epoll", "spin"} {
		t.Run(how, func(t *testing.T) {
			s := newRig(t).bash()
			for _, cmd := range []string{"ttybody ", "placed ttybody "} {
				s.send(cmd + how + "\n")
				s.expect(how + "\r\n")
				time.Sleep(150 * time.Millisecond)
				s.send("line\n")
				s.expect("line\r\ngot line\r\n")
				s.expect("$ ")
			}
		})
	}
}

func BenchmarkRawKey(b *testing.B) {
	for _, cmd := range []string{"ttybody raw", "placed ttybody raw"} {
		b.Run(strings.Fields(cmd)[0], func(b *testing.B) {
			s := newRig(b).bash()
			s.send(cmd + "\n")
			s.expect("raw\r\nraw\r\n")
			b.ResetTimer()
			for range b.N {
				s.send("x")
				s.expect("x")
			}
			b.StopTimer()
			s.quiet(20 * time.Millisecond)
			s.send("q")
			s.expect("$ ")
		})
	}
}

func BenchmarkLine(b *testing.B) {
	s := newRig(b).bash()
	s.send("placed cat\n")
	s.expect("cat\r\n")
	b.ResetTimer()
	for range b.N {
		s.send("x\n")
		s.expect("x\r\nx\r\n")
	}
	b.StopTimer()
	s.send("\x04")
	s.expect("$ ")
}

func TestRawTypeAhead(t *testing.T) {
	s := newRig(t).bash()
	s.send("placed ttybody raw\n")
	s.expect("raw\r\nraw\r\n")
	s.send("abcq echo typed\n")
	s.expect("abc")
	s.expect("typed\r\n")
	s.expect("$ ")
}

// TestFlowControl: ^S holds a placed program's output, ^Q lets it go on.
func TestFlowControl(t *testing.T) {
	s := newRig(t).bash()
	s.send("placed sh -c 'echo a; read x; echo b; read y; echo c'\n")
	s.expect("a\r\n")
	s.send("\x13")
	s.send("1\n2\n")
	s.quiet(150 * time.Millisecond)
	s.send("\x11")
	s.expect("b\r\n")
	s.expect("c\r\n")
	s.expect("$ ")
}

func needs(t *testing.T, prog string) {
	if _, err := exec.LookPath(prog); err != nil {
		t.Skip("needs " + prog)
	}
}

func TestVim(t *testing.T) {
	needs(t, "vim")
	r := newRig(t)
	s := r.bash()
	file := filepath.Join(r.dir, "f")
	s.send("placed vim -u NONE -N f\n")
	s.expect("\x1b[?1049h") // the other screen
	time.Sleep(300 * time.Millisecond)
	s.send("ihello\x1b")
	s.expect("hello")
	s.stop("$ ")
	if got := s.run("stty -a | grep -o ' icanon'"); got != " icanon\r\n" {
		t.Fatalf("%q", got)
	}
	s.send("fg\n")
	s.expect("hello")
	s.send("A world\x1b:wq\r")
	s.expect("$ ")
	if b, _ := os.ReadFile(file); string(b) != "hello world\n" {
		t.Fatalf("%q", b)
	}
	if got := s.run("echo after"); got != "after\r\n" {
		t.Fatalf("%q", got)
	}
}

func TestLess(t *testing.T) {
	needs(t, "less")
	for _, cmd := range []string{"seq 1 500 >f; placed less f", "seq 1 500 | less", "placed seq 1 500 | less", "placed seq 1 500 | placed less"} {
		t.Run("", func(t *testing.T) { testLess(t, cmd) })
	}
}

func testLess(t *testing.T, cmd string) {
	s := newRig(t).bash()
	s.send(cmd + "\n")
	s.expect("\n23")
	s.send(" ")
	s.expect("46")
	time.Sleep(50 * time.Millisecond) // less loses a key that comes as it paints, natively too
	s.stop("$ ")
	s.send("fg\n")
	s.expect("46")
	s.send("G")
	s.expect("500")
	s.send("q")
	s.expect("$ ")
	if got := s.run("echo after"); got != "after\r\n" {
		t.Fatalf("%q", got)
	}
}

// TestInnerShell: a shell at the guest with jobs of its own.
func TestInnerShell(t *testing.T) {
	s := newRig(t).bash()
	s.send("PS1='in> ' placed bash --norc --noprofile --noediting -i\n")
	s.expect("-i\r\n")
	s.expect("in> ")
	s.send("echo a\n")
	s.expect("echo a\r\na\r\nin> ")
	s.send("sh -c 'echo up; exec sleep 30'\n")
	s.expect("30'\r\nup\r\n")
	s.send("\x03")
	s.expect("^C")
	s.expect("in> ")
	s.send("cat\n")
	s.expect("cat\r\n")
	s.send("x\n")
	s.expect("x\r\nx\r\n")
	s.stop("in> ")
	s.fg("cat", "y")
	s.send("\x04")
	s.expect("in> ")
	s.send("exit 3\n")
	s.expect("$ ")
	if got := s.run("echo $?"); got != "3\r\n" {
		t.Fatalf("%q", got)
	}
}

// TestReadline: both shells edit their lines in raw mode.
func TestReadline(t *testing.T) {
	r := newRig(t)
	s := r.shell("bash", "--norc", "--noprofile", "-i")
	s.expect("$ ")
	s.send("PS1='in> ' placed bash --norc --noprofile -i\r")
	s.expect("-i\r\n")
	s.expect("in> ")
	s.send("echo ab\x02X\r")
	s.expect("aXb\r\n")
	s.expect("in> ")
	s.send("sleep 0.3\recho ahead\r")
	s.expect("l\rahead\r\n")
	s.expect("in> ")
	s.send("exit\r")
	s.expect("$ ")
	s.send("placed sleep 0.3\recho ahe\x02X\r")
	s.expect("l\rahXe\r\n")
}

func TestNothingLeft(t *testing.T) {
	fds := func() int {
		e, _ := os.ReadDir("/proc/self/fd")
		return len(e)
	}
	r := newRig(t)
	s := r.bash()
	s.run("placed echo x")
	before := fds()
	for range 20 {
		s.run("placed echo x; echo y | placed cat")
	}
	var after int
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if after = fds(); after <= before {
			break
		}
	}
	if after > before {
		out, _ := exec.Command("ls", "-l", "/proc/"+strconv.Itoa(os.Getpid())+"/fd").Output()
		t.Fatalf("%d descriptors, then %d\n%s", before, after, out)
	}
}
