package pipe

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unum/carry"
	"unum/sys"
)

// A body may have read and ended before its caller has become the deputy.
func TestEndBeforeCommit(t *testing.T) {
	r := newRig(t)
	pr, pw := userPipe(t)
	pw.WriteString("1\n2\n")
	p := r.carry('r', dup(t, pr), 0, false)
	cmd := sh("read x; echo $x")
	cmd.Stdin = p.body
	out, err := cmd.Output()
	if err != nil || string(out) != "1\n" {
		t.Fatal(err, out)
	}
	p.guest.Started(true)
	p.body.Close()
	flushed := make(chan error)
	go func() { flushed <- p.guest.Flush(context.Background(), true) }()
	time.Sleep(20 * time.Millisecond)
	p.home.Commit()
	if err := <-flushed; err != nil {
		t.Error(err)
	}
	p.ended()
	pw.Close()
	if rest, _ := io.ReadAll(pr); string(rest) != "2\n" {
		t.Errorf("%q is left", rest)
	}
}

// A body that closes its end and lives on: the deputy closes its copy too.
func TestClosedByBody(t *testing.T) {
	r := newRig(t)
	for _, dir := range []byte{'r', 'w'} {
		pr, pw := userPipe(t)
		user := pr
		if dir == 'w' {
			user = pw
		}
		var p *placed
		told := make(chan []int, 1)
		r.side[0].env.Release = func(ctx context.Context, pl carry.Placement, nums []int) error {
			p.user.Close()
			told <- nums
			return nil
		}
		p = r.carry(dir, dup(t, user), 0, false)
		cmd := p.start(exec.Command("sh", "-c", "exec <&- >&-; exec sleep 60"))
		user.Close()
		if dir == 'w' {
			if n, err := pr.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("read %d, %v, want the end", n, err)
			}
		} else {
			var err error
			eventually(t, func() bool { _, err = pw.Write([]byte("x")); return err != nil })
			if pe, ok := err.(*os.PathError); !ok || pe.Err != syscall.EPIPE {
				t.Errorf("write: %v, want EPIPE", err)
			}
		}
		if nums := <-told; len(nums) != 1 || nums[0] != 0 {
			t.Errorf("released %v", nums)
		}
		cmd.Process.Kill()
		p.wait(cmd)
	}
}

// Children of a body are served by a successor that the node tells nothing of
// them.
func TestAdrift(t *testing.T) {
	r := newRig(t)
	pr, pw := userPipe(t)
	p := r.carry('w', pw, 0, false)
	p.wait(p.start(sh("(sleep 0.3; echo late) & echo early")))
	for _, n := range r.side {
		n.restart()
	}
	if got, _ := io.ReadAll(pr); string(got) != "early\nlate\n" {
		t.Errorf("read %q", got)
	}
}

// The guest is lost: home lets go, and what the body had not taken is left.
func TestGuestLost(t *testing.T) {
	r := newRig(t)
	pr, pw := userPipe(t)
	p := r.carry('r', dup(t, pr), 0, false)
	cmd := p.start(exec.Command("sleep", "60"))
	pw.WriteString("kept")
	r.side[1].node.Lost()
	r.net.Cut()
	<-p.home.(*homeEnd).h.released
	cmd.Process.Kill()
	cmd.Wait()
	p.home.Close()
	p.user.Close()
	pw.Close()
	if rest, _ := io.ReadAll(pr); string(rest) != "kept" {
		t.Errorf("%q is left", rest)
	}
	p.guest.Close()
	eventually(t, func() bool {
		r.side[1].c.mourn(0)
		r.side[1].c.mu.Lock()
		defer r.side[1].c.mu.Unlock()
		return len(r.side[1].c.halves) == 0
	})
}

// Pages that no node takes up go by and by.
func TestOrphans(t *testing.T) {
	r := newRig(t)
	pr, _ := userPipe(t)
	p := r.carry('r', dup(t, pr), 0, false)
	cmd := p.start(exec.Command("sleep", "60"))
	for _, n := range r.side {
		n.restart()
	}
	cmd.Process.Kill()
	cmd.Wait()
	p.user.Close()
	for _, n := range r.side {
		paths, _ := filepath.Glob(n.dir + "/*")
		if len(paths) != 1 {
			t.Errorf("%s: pages %q", n.env.Node, paths)
		}
		for _, path := range paths {
			if err := n.c.adoptOne(path, true); err != nil {
				t.Errorf("%s: %v", n.env.Node, err)
			}
		}
	}
}

// Many pipes at once, and nothing is left of them; see the rig's end.
func TestMany(t *testing.T) {
	r := newRig(t)
	done := make(chan string)
	const n = 60
	for i := range n {
		pr, pw := userPipe(t)
		qr, qw := userPipe(t)
		in, out := r.carry('r', pr, 0, false), r.carry('w', qw, 0, false)
		cmd := exec.Command("cat")
		cmd.Stdin, cmd.Stdout = in.body, out.body
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		in.begun()
		out.begun()
		go func() {
			fmt.Fprintln(pw, "line", i)
			pw.Close()
			cmd.Wait()
			in.ended()
			out.ended()
			b, _ := io.ReadAll(qr)
			if string(b) != fmt.Sprintln("line", i) {
				t.Errorf("%d: %q", i, b)
			}
			done <- ""
		}()
	}
	for range n {
		<-done
	}
}

// A pipe that nobody will write to any more looks like that from the first
// moment.
func TestEndedAtClaim(t *testing.T) {
	r := newRig(t)
	for _, content := range []string{"", "content"} {
		pr, pw := userPipe(t)
		pw.WriteString(content)
		pw.Close()
		p := r.carry('r', dup(t, pr), 0, false)
		want := int16(unix.POLLHUP)
		if content != "" {
			want |= unix.POLLIN
		}
		if ev, _ := sys.Poll(p.body, unix.POLLIN); ev != want {
			t.Errorf("%q: poll says %x, want %x", content, ev, want)
		}
		cmd := exec.Command("head", "-c", "3")
		out, _ := cmd.StdoutPipe()
		p.start(cmd)
		got, _ := io.ReadAll(out)
		p.wait(cmd)
		if string(got) != content[:min(3, len(content))] {
			t.Errorf("read %q of %q", got, content)
		}
	}
}

// A guest's daemon dies in the midst of a birth, so that the body is never
// born; home asks for it once more, and its half goes on with the new one.
func TestBornAtTheSecondTry(t *testing.T) {
	for _, dir := range []byte{'r', 'w'} {
		for _, both := range []bool{false, true} {
			t.Run(fmt.Sprintf("%c/%v", dir, both), func(t *testing.T) {
				r := newRig(t)
				pr, pw := userPipe(t)
				user, word := pr, "word\n"
				if dir == 'w' {
					user = pw
				}
				pw.WriteString("word\n")
				p := r.carry(dir, dup(t, user), 0, false)
				time.Sleep(20 * time.Millisecond) // the halves are linked
				p.body.Close()
				if both {
					p.restart(0)
				}
				p.restart(1)
				p.guest.Started(false)
				p.guest.Close()
				time.Sleep(20 * time.Millisecond) // home has asked for its other half
				var err error
				if p.guest, err = r.side[1].kind(dir).Land(context.Background(), p.pl, p.d); err != nil {
					t.Fatal(err)
				}
				p.body = p.guest.Local().File
				if dir == 'r' {
					cmd := sh("read x; echo $x")
					out, err := os.CreateTemp(t.TempDir(), "")
					if err != nil {
						t.Fatal(err)
					}
					defer out.Close()
					cmd.Stdout = out
					p.wait(p.start(cmd))
					if b, _ := os.ReadFile(out.Name()); string(b) != word {
						t.Errorf("read %q", b)
					}
					return
				}
				p.wait(p.start(sh("echo more")))
				user.Close()
				if b, _ := io.ReadAll(pr); string(b) != "word\nmore\n" {
					t.Errorf("read %q", b)
				}
			})
		}
	}
}

// Home lets go before the guest has made its half: nobody waits for it.
func TestHomeGoesBeforeTheGuestComes(t *testing.T) {
	r := newRig(t)
	_, pw := userPipe(t)
	p := r.carry('w', pw, 0, false)
	p.guest.Started(false)
	p.guest.Close() // it was landed, and its body was refused
	p.body.Close()
	p.home.Close()
	eventually(t, func() bool {
		b := make([]byte, 1<<20)
		return !strings.Contains(string(b[:runtime.Stack(b, true)]), "(*Carrier).await")
	})
	b := make([]byte, 1<<20)
	if all := string(b[:runtime.Stack(b, true)]); strings.Contains(all, "(*Carrier).await") {
		t.Errorf("somebody waits:\n%s", all)
	}
}
