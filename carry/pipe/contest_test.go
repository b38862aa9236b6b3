package pipe

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// homeReader is a process at home that holds the pipe and reads from it when
// told to.
func homeReader(t *testing.T, pr *os.File, script string) (goOn func(), out io.Reader, cmd *exec.Cmd) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd = sh("read x <&3; " + script)
	cmd.Stdin, cmd.ExtraFiles = pr, []*os.File{r}
	out, _ = cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	return func() { w.WriteString("\n"); w.Close() }, out, cmd
}

// A body stops, a reader at home goes on where it left off, and the body after
// that.
func TestReaderWhileStopped(t *testing.T) {
	r := newRig(t)
	pr, pw := userPipe(t)
	for i := 1; i <= 1000; i++ {
		fmt.Fprintln(pw, i)
	}
	p := r.carry('r', dup(t, pr), 0, false)
	cmd := sh("read a; echo $a; kill -STOP $$; read b; echo $b")
	out, _ := cmd.StdoutPipe()
	p.start(cmd)
	var ws unix.WaitStatus
	if _, err := unix.Wait4(cmd.Process.Pid, &ws, unix.WUNTRACED, nil); err != nil || !ws.Stopped() {
		t.Fatal(err, ws)
	}
	goOn, homeOut, home := homeReader(t, pr, "read x; echo $x; read x; echo $x")
	if err := p.guest.Flush(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	goOn()
	got, _ := io.ReadAll(homeOut)
	home.Wait()
	if string(got) != "2\n3\n" {
		t.Errorf("home read %q", got)
	}
	cmd.Process.Signal(syscall.SIGCONT)
	got, _ = io.ReadAll(out)
	p.wait(cmd)
	if string(got) != "1\n4\n" {
		t.Errorf("the body read %q", got)
	}
	pw.Close()
	rest, _ := io.ReadAll(pr)
	if len(rest) == 0 || string(rest[:2]) != "5\n" {
		t.Errorf("%.10q is left", rest)
	}
}

// A child of the body keeps the pipe while the next reader at home reads.
func TestReaderBesideChild(t *testing.T) {
	r := newRig(t)
	pr, pw := userPipe(t)
	for i := 1; i <= 1000; i++ {
		fmt.Fprintln(pw, i)
	}
	p := r.carry('r', dup(t, pr), 0, false)
	cmd := sh("exec 3<&0; (sleep 0.3; read x <&3; echo $x) & read a; echo $a")
	out, wr, _ := os.Pipe()
	cmd.Stdout = wr
	goOn, homeOut, home := homeReader(t, pr, "read x; echo $x")
	p.start(cmd)
	wr.Close()
	p.wait(cmd)
	goOn()
	got, _ := io.ReadAll(homeOut)
	home.Wait()
	if string(got) != "2\n" {
		t.Errorf("home read %q", got)
	}
	got, _ = io.ReadAll(out)
	out.Close()
	if string(got) != "1\n3\n" {
		t.Errorf("the body and its child read %q", got)
	}
	pw.Close()
	pr.Close()
}

// Two readers, one of them placed, share a pipe: no line is lost or seen twice.
func TestTwoReaders(t *testing.T) {
	for _, restarts := range []bool{false, true} {
		t.Run(fmt.Sprint("restarts ", restarts), func(t *testing.T) {
			r := newRig(t)
			pr, pw := userPipe(t)
			p := r.carry('r', dup(t, pr), 0, false)
			p.home.(*homeEnd).h.eng.(*source).doubt(true)
			body, local := exec.Command("cat"), exec.Command("cat")
			bodyOut, _ := body.StdoutPipe()
			localOut, _ := local.StdoutPipe()
			local.Stdin = pr
			p.start(body)
			if err := local.Start(); err != nil {
				t.Fatal(err)
			}
			pr.Close()
			const lines = 2000
			go func() {
				for i := range lines {
					fmt.Fprintln(pw, i)
					if i%10 == 0 {
						time.Sleep(time.Millisecond)
					}
				}
				pw.Close()
			}()
			seen := make(chan [2]int, 2*lines)
			over := make(chan bool)
			for who, out := range []io.Reader{bodyOut, localOut} {
				go func() {
					for sc := bufio.NewScanner(out); sc.Scan(); {
						var n int
						fmt.Sscan(sc.Text(), &n)
						seen <- [2]int{who, n}
					}
					over <- true
				}()
			}
			for ended, n := 0, 0; ended < 2; {
				select {
				case <-over:
					ended++
				case <-time.After(20 * time.Millisecond):
					if restarts {
						p.restart(n % 2)
						n++
					}
				}
			}
			close(seen)
			count, times := [2]int{}, make([]int, lines)
			for s := range seen {
				count[s[0]]++
				times[s[1]]++
			}
			for i, n := range times {
				if n != 1 {
					t.Errorf("line %d was seen %d times", i, n)
					break
				}
			}
			t.Logf("the body read %d lines, the other %d", count[0], count[1])
			if count[0] == 0 {
				t.Error("the body got nothing")
			}
			p.wait(body)
			local.Wait()
		})
	}
}
