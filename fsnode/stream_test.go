package fsnode

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pipe returns a pipe in blocking mode, as a shell makes it.
func pipe(t testing.TB) (r, w *os.File) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w = os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// Six bodies share the tokens of a jobserver: never more than four hold one,
// and none is lost.
func TestTokens(t *testing.T) {
	p := newPair(t)
	r, w := pipe(t)
	w.WriteString("+-*/")
	const script = `import os,sys,time
for i in range(25):
    tok=os.read(0,1)
    sys.stderr.write("")
    os.write(3, b"<"); time.sleep(0.002); os.write(3, b">")
    os.write(1, tok)
`
	tr, tw := pipe(t) // what they tell of holding a token
	var held, most int
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1)
		for {
			if n, _ := tr.Read(b); n == 0 {
				return
			}
			if b[0] == '<' {
				held++
			} else {
				held--
			}
			most = max(most, held)
		}
	}()
	var wg sync.WaitGroup
	for range 6 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c := p.carry(r)
			cmd := command(t, "python3", "-ISc", script)
			cmd.Stdin, cmd.Stdout, cmd.ExtraFiles = c.file, w, []*os.File{tw}
			if err := cmd.Start(); err != nil {
				t.Error(err)
				return
			}
			c.started()
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			c.ended()
		}()
	}
	wg.Wait()
	tw.Close()
	<-done
	if most > 4 || most < 2 {
		t.Errorf("%d at once, want 2 to 4", most)
	}
	b := make([]byte, 10)
	n, _ := r.Read(b)
	if got := sorted(b[:n]); got != "*+-/" {
		t.Errorf("tokens left: %q", got)
	}
}

func sorted(b []byte) string {
	s := strings.Split(string(b), "")
	for i := range s {
		for j := range i {
			if s[i] < s[j] {
				s[i], s[j] = s[j], s[i]
			}
		}
	}
	return strings.Join(s, "")
}

// A reader that is interrupted or killed while it waits takes nothing.
func TestInterruptedReaderTakesNothing(t *testing.T) {
	p := newPair(t)
	r, w := pipe(t)
	for i := range 8 {
		c := p.carry(r)
		cmd := command(t, "python3", "-ISc", `import os,signal,sys
def h(*a): raise KeyboardInterrupt
signal.signal(signal.SIGUSR1, h)
os.write(1,b"r")
try: os.read(0,1)
except KeyboardInterrupt: sys.exit(7)
`)
		sr, sw := pipe(t)
		cmd.Stdin, cmd.Stdout = c.file, sw
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		c.started()
		sw.Close()
		sr.Read(make([]byte, 1))
		waitBlocked(t, cmd.Process.Pid, 0)
		sig := unix.SIGUSR1
		if i%2 == 1 {
			sig = unix.SIGKILL
		}
		cmd.Process.Signal(sig)
		cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); sig == unix.SIGUSR1 && code != 7 {
			t.Fatalf("exit code %d", code)
		}
		c.ended()
		w.Write([]byte{'x'})
		b := make([]byte, 10)
		unix.SetNonblock(int(r.Fd()), true)
		n, err := unix.Read(int(r.Fd()), b)
		unix.SetNonblock(int(r.Fd()), false)
		if n != 1 {
			t.Fatalf("the byte is gone: %d %v", n, err)
		}
	}
}

// poll, select, O_NONBLOCK, EOF and the end of the readers are as of a pipe.
func TestStreamBehavesAsPipe(t *testing.T) {
	p := newPair(t)
	t.Run("select", func(t *testing.T) {
		r, w := pipe(t)
		out := temp(t, os.O_RDWR, "")
		wait := p.start(r, out, "python3", "-ISc", `import os,select,fcntl
print(select.select([0],[],[],0)[0])
fcntl.fcntl(0,fcntl.F_SETFL,os.O_NONBLOCK)
try: os.read(0,1)
except BlockingIOError: print("again",flush=True)
print(select.select([0],[],[],10)[0])
print(os.read(0,100))
print(select.select([0],[],[],10)[0])
print(os.read(0,100))
`)
		waitFor(t, func() bool { return strings.Contains(content(t, out), "again") })
		w.WriteString("hello")
		waitFor(t, func() bool { return strings.Contains(content(t, out), "hello") || inPipe(r) == 0 })
		w.Close()
		if err := wait(); err != nil {
			t.Fatal(err)
		}
		if got, want := content(t, out), "[]\nagain\n[0]\nb'hello'\n[0]\nb''\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("bulk", func(t *testing.T) {
		r, w := pipe(t)
		out := temp(t, os.O_RDWR, "")
		data := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
		go func() { w.Write(data); w.Close() }()
		if err := p.body(r, out, "cat"); err != nil {
			t.Fatal(err)
		}
		if got := content(t, out); got != string(data) {
			t.Errorf("%d bytes, want %d", len(got), len(data))
		}
	})
	t.Run("broken", func(t *testing.T) {
		r, w := pipe(t)
		w.WriteString("a\nb\n")
		if err := p.body(r, nil, "python3", "-ISc", `import os; os.read(0,2)`); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 10)
		if n, _ := r.Read(b); string(b[:n]) != "b\n" {
			t.Errorf("left for the next reader: %q", b[:n])
		}
		r.Close()
		if _, err := w.WriteString("x"); err == nil {
			t.Error("the pipe still has a reader")
		}
	})
}

func inPipe(f *os.File) int {
	n, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCINQ)
	if err != nil {
		return -1
	}
	return n
}

// xargs' children share its standard input with it.
func TestShellReadsLineByLine(t *testing.T) {
	p := newPair(t)
	r, w := pipe(t)
	out := temp(t, os.O_RDWR, "")
	var want strings.Builder
	for i := range 200 {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	go func() { io.WriteString(w, want.String()); w.Close() }()
	// Two readers in turn, a body and this process.
	if err := p.body(r, out, "sh", "-c", "for i in 1 2 3 4 5; do read -r l; echo \"$l\"; done"); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(r)
	if got := content(t, out) + string(rest); got != want.String() {
		t.Errorf("together %d bytes, want %d; body read %q", len(got), want.Len(), content(t, out))
	}
}

func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("did not happen")
		}
	}
}

// waitBlocked waits until a process sleeps in a read of a descriptor.
func waitBlocked(t testing.TB, pid, fd int) {
	t.Helper()
	waitFor(t, func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
		return err == nil && strings.HasPrefix(string(b), fmt.Sprintf("%d %#x ", unix.SYS_READ, fd))
	})
}
