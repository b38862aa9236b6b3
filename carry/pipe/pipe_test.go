package pipe

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/sys"
)

func nodeID(s string) unum.NodeID { return unum.NodeID(s) }

// write writes all of r to a pipe at home and closes it.
func write(w *os.File, r io.Reader) chan error {
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(struct{ io.Writer }{w}, r)
		w.Close()
		done <- err
	}()
	return done
}

// sizeOf is how much a test carries: what is named in MiB in the long run, an
// eighth of it else.
func sizeOf(mib int64) int64 {
	if os.Getenv("UNUM_LONG") == "" {
		mib /= 8
	}
	return mib << 20
}

func sh(script string) *exec.Cmd { return exec.Command("sh", "-c", script) }

func TestReadIntact(t *testing.T) {
	r := newRig(t)
	pr, pw := userPipe(t)
	p := r.carry('r', pr, 0, false)
	size := sizeOf(256)
	wrote := write(pw, noise(size))
	cmd := exec.Command("cat")
	out, _ := cmd.StdoutPipe()
	p.start(cmd)
	began := time.Now()
	sum, n := digest(out)
	t.Logf("%.0f MB/s", float64(n)/1e6/time.Since(began).Seconds())
	if err := p.wait(cmd); err != nil {
		t.Error(err)
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	if want, _ := digest(noise(size)); n != size || sum != want {
		t.Errorf("%d bytes with digest %s, want %d with %s", n, sum, size, want)
	}
}

func TestWriteIntact(t *testing.T) {
	r := newRig(t)
	pr, pw := userPipe(t)
	p := r.carry('w', pw, 0, false)
	size := sizeOf(256)
	cmd := exec.Command("cat")
	cmd.Stdin = noise(size)
	p.start(cmd)
	done := make(chan error, 1)
	go func() { done <- p.wait(cmd) }()
	began := time.Now()
	sum, n := digest(pr)
	t.Logf("%.0f MB/s", float64(n)/1e6/time.Since(began).Seconds())
	if err := <-done; err != nil {
		t.Error(err)
	}
	if want, _ := digest(noise(size)); n != size || sum != want {
		t.Errorf("%d bytes with digest %s, want %d with %s", n, sum, size, want)
	}
}

// What the body did not read is there for who comes after it.
func TestUnreadStays(t *testing.T) {
	for _, script := range []string{"head -c 10", "true", "dd bs=1 count=10 2>/dev/null", "exec cat <&- 2>/dev/null"} {
		t.Run(script, func(t *testing.T) {
			r := newRig(t)
			pr, pw := userPipe(t)
			pw.WriteString(strings.Repeat("x", 20))
			p := r.carry('r', pr, 0, false)
			pw.WriteString(strings.Repeat("y", 5000))
			cmd := sh(script)
			out, _ := cmd.StdoutPipe()
			next := dup(t, pr)
			defer next.Close()
			p.start(cmd)
			got, _ := io.ReadAll(out)
			p.wait(cmd)
			pw.Close()
			rest, _ := io.ReadAll(next)
			if strings.HasPrefix(script, "head") {
				// head may read more than it prints: natively too.
				if len(rest) != 0 && len(rest) != 5020-len(got) && len(rest) != 5000 {
					t.Errorf("%d bytes left", len(rest))
				}
				return
			}
			if len(got)+len(rest) != 5020 {
				t.Errorf("%d bytes read and %d left, of 5020", len(got), len(rest))
			}
		})
	}
}

func TestEarlyExitOfReader(t *testing.T) {
	r := newRig(t)
	t.Run("placed head", func(t *testing.T) {
		pr, pw := userPipe(t)
		p := r.carry('r', pr, 0, false)
		yes := exec.Command("yes")
		yes.Stdout = pw
		if err := yes.Start(); err != nil {
			t.Fatal(err)
		}
		pw.Close()
		cmd := exec.Command("head", "-1")
		out, _ := cmd.StdoutPipe()
		p.start(cmd)
		got, _ := io.ReadAll(out)
		p.wait(cmd)
		if string(got) != "y\n" {
			t.Errorf("head read %q", got)
		}
		diedBy(t, yes.Wait(), syscall.SIGPIPE)
	})
	t.Run("placed yes", func(t *testing.T) {
		pr, pw := userPipe(t)
		p := r.carry('w', pw, 0, false)
		yes := p.start(exec.Command("yes"))
		head := exec.Command("head", "-1")
		head.Stdin = pr
		out, _ := head.StdoutPipe()
		if err := head.Start(); err != nil {
			t.Fatal(err)
		}
		pr.Close()
		if got, _ := io.ReadAll(out); string(got) != "y\n" {
			t.Errorf("head read %q", got)
		}
		head.Wait()
		diedBy(t, p.wait(yes), syscall.SIGPIPE)
	})
}

func diedBy(t *testing.T, err error, sig syscall.Signal) {
	t.Helper()
	var e *exec.ExitError
	if !errors.As(err, &e) || e.Sys().(syscall.WaitStatus).Signal() != sig {
		t.Errorf("ended with %v, want %v", err, sig)
	}
}

func TestEarlyExitOfWriter(t *testing.T) {
	r := newRig(t)
	pr, pw := userPipe(t)
	p := r.carry('w', pw, 0, false)
	cmd := p.start(sh("printf hello; exec >&-; exec cat /dev/null"))
	p.wait(cmd)
	got, _ := io.ReadAll(pr)
	if string(got) != "hello" {
		t.Errorf("read %q", got)
	}
}

func TestBackgroundChild(t *testing.T) {
	r := newRig(t)
	t.Run("writes", func(t *testing.T) {
		pr, pw := userPipe(t)
		p := r.carry('w', pw, 0, false)
		cmd := p.start(sh("(sleep 0.3; echo late) & echo early"))
		p.wait(cmd)
		got, _ := io.ReadAll(pr)
		if string(got) != "early\nlate\n" {
			t.Errorf("read %q", got)
		}
	})
	t.Run("reads", func(t *testing.T) {
		pr, pw := userPipe(t)
		p := r.carry('r', pr, 0, false)
		cmd := sh("exec 3<&0; cat <&3 & read x; echo body: $x")
		cmd.Stdin = nil
		out, wr, _ := os.Pipe()
		cmd = sh("exec 3<&0; (sleep 0.2; cat <&3) & read x; echo body: $x")
		cmd.Stdout = wr
		p.start(cmd)
		wr.Close()
		pw.WriteString("one\n")
		p.wait(cmd)
		pw.WriteString("two\n")
		time.Sleep(300 * time.Millisecond)
		pw.WriteString("three\n")
		pw.Close()
		got, _ := io.ReadAll(out)
		out.Close()
		if string(got) != "body: one\ntwo\nthree\n" {
			t.Errorf("read %q", got)
		}
	})
}

func TestBackPressure(t *testing.T) {
	r := newRig(t)
	fill := func(f *os.File) (n int) {
		t.Helper()
		buf := make([]byte, 1000)
		for {
			if ev, _ := sys.Poll(f, unix.POLLOUT); ev&unix.POLLOUT == 0 {
				return n
			}
			m, _ := sys.WriteNow(f, buf)
			n += m
		}
	}
	t.Run("read", func(t *testing.T) {
		pr, pw := userPipe(t)
		p := r.carry('r', pr, 0, false)
		cmd := p.start(exec.Command("sleep", "0.3"))
		unix.SetNonblock(int(pw.Fd()), true)
		total := fill(pw)
		time.Sleep(100 * time.Millisecond)
		total += fill(pw)
		if total < 60000 || total > 65536 {
			t.Errorf("%d bytes fit, want those of one pipe", total)
		}
		p.wait(cmd)
	})
	t.Run("write", func(t *testing.T) {
		pr, pw := userPipe(t)
		p := r.carry('w', pw, unix.O_NONBLOCK, false)
		unix.SetNonblock(int(p.body.Fd()), true)
		body := dup(t, p.body)
		p.begun()
		total := fill(body)
		time.Sleep(50 * time.Millisecond)
		total += fill(body)
		if total < 60000 || total > 65536 {
			t.Errorf("%d bytes fit, want those of one pipe", total)
		}
		body.Close()
		// A body that ends does not wait for who reads.
		began := time.Now()
		p.ended()
		if d := time.Since(began); d > time.Second {
			t.Errorf("the end took %v", d)
		}
		if _, n := digest(pr); n != int64(total) {
			t.Errorf("%d bytes arrived of %d", n, total)
		}
	})
}

func TestUnreadCount(t *testing.T) {
	r := newRig(t)
	pr, pw := userPipe(t)
	pw.WriteString("123")
	p := r.carry('r', pr, 0, false)
	body := dup(t, p.body)
	p.begun()
	unread := func(want int) {
		t.Helper()
		var n int
		if !eventually(t, func() bool { n, _ = sys.PipeUnread(body); return n == want }) {
			t.Errorf("FIONREAD is %d, want %d", n, want)
		}
	}
	if n, _ := sys.PipeUnread(body); n != 3 {
		t.Errorf("FIONREAD is %d at the start, want 3", n)
	}
	for i := 0; i < 100; i++ { // each would take a slot of its own
		pw.WriteString("x")
		time.Sleep(time.Millisecond)
	}
	unread(103)
	pw.Close()
	time.Sleep(20 * time.Millisecond)
	unread(103)
	b, err := io.ReadAll(io.LimitReader(body, 100))
	if len(b) != 100 || err != nil {
		t.Errorf("read %d, %v", len(b), err)
	}
	unread(3)
	if ev, _ := sys.Poll(body, unix.POLLIN); ev != unix.POLLIN|unix.POLLHUP {
		t.Errorf("poll says %x, want POLLIN and POLLHUP", ev)
	}
	body.Close()
	left := dup(t, pr)
	defer left.Close()
	p.ended()
	if b, _ := io.ReadAll(left); string(b) != "xxx" {
		t.Errorf("%q left at home, want xxx", b)
	}
}

func TestNonblock(t *testing.T) {
	r := newRig(t)
	pr, pw := userPipe(t)
	p := r.carry('r', pr, unix.O_NONBLOCK, false)
	body := dup(t, p.body)
	p.begun()
	if fl, _ := unix.FcntlInt(pr.Fd(), unix.F_GETFL, 0); fl&unix.O_NONBLOCK != 0 {
		t.Error("the user's description became non-blocking")
	}
	var b [10]byte
	if _, err := sys.ReadNow(body, b[:]); err != unix.EAGAIN {
		t.Errorf("read of the empty pipe: %v, want EAGAIN", err)
	}
	pw.WriteString("a")
	if !eventually(t, func() bool { ev, _ := sys.Poll(body, unix.POLLIN); return ev == unix.POLLIN }) {
		t.Error("poll sees nothing")
	}
	if n, err := sys.ReadNow(body, b[:]); n != 1 || err != nil {
		t.Errorf("read: %d, %v", n, err)
	}
	pw.Close()
	if !eventually(t, func() bool { n, err := sys.ReadNow(body, b[:]); return n == 0 && err == nil }) {
		t.Error("no end of file")
	}
	body.Close()
	p.ended()
}

// A body that never ran leaves no trace.
func TestUnborn(t *testing.T) {
	r := newRig(t)
	for _, dir := range []byte{'r', 'w'} {
		pr, pw := userPipe(t)
		user := pr
		if dir == 'w' {
			user = pw
		} else {
			pw.WriteString("kept")
		}
		p := r.carry(dir, user, 0, false)
		p.guest.Started(false)
		p.body.Close()
		if err := p.guest.Close(); err != nil {
			t.Error(err)
		}
		if err := p.home.Close(); err != nil {
			t.Error(err)
		}
		if n, _ := sys.PipeUnread(pr); dir == 'r' && n != 4 {
			t.Errorf("%d bytes left, want 4", n)
		}
	}
}

func TestLatency(t *testing.T) {
	r := newRig(t)
	pr, pw := userPipe(t)
	qr, qw := userPipe(t)
	in := r.carry('r', pr, 0, false)
	out := r.carry('w', qw, 0, false)
	cmd := exec.Command("dd", "bs=1", "status=none")
	cmd.Stdin, cmd.Stdout = in.body, out.body
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.begun()
	out.begun()
	var best, sum time.Duration
	const rounds = 2000
	var b [1]byte
	for i := 0; i < rounds; i++ {
		t0 := time.Now()
		pw.Write(b[:])
		qr.Read(b[:])
		d := time.Since(t0)
		if sum += d; best == 0 || d < best {
			best = d
		}
	}
	t.Logf("there and back: %v on average, best %v", sum/rounds, best)
	pw.Close()
	cmd.Wait()
	in.ended()
	out.ended()
}
