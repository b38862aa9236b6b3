package tty

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// shell is an interactive program on home's terminal.
type shell struct {
	t   testing.TB
	r   *rig
	cmd *exec.Cmd
	tty *os.File

	mu   sync.Mutex
	out  []byte
	more chan struct{}
	eof  bool
}

func (r *rig) shell(argv ...string) *shell {
	r.t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = r.dir
	cmd.Env = []string{
		"PATH=" + r.dir + ":/usr/bin:/bin:/usr/sbin:/sbin", "PS1=$ ", "TERM=xterm", "HOME=" + r.dir,
		"TTY_TEST_SOCK=" + filepath.Join(r.dir, "sock"), "LC_ALL=C", "HISTFILE=", "INPUTRC=/dev/null",
	}
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 80})
	if err != nil {
		r.t.Fatal(err)
	}
	// Start leaves it blocking, so that Close would wait for the reader below.
	fd, err := unix.Dup(int(f.Fd()))
	if err != nil {
		r.t.Fatal(err)
	}
	unix.CloseOnExec(fd)
	_ = unix.SetNonblock(fd, true)
	f.Close()
	f = os.NewFile(uintptr(fd), "ptmx")
	s := &shell{t: r.t, r: r, cmd: cmd, tty: f, more: make(chan struct{}, 1)}
	go func() {
		b := make([]byte, 32<<10)
		for {
			n, err := f.Read(b)
			s.mu.Lock()
			s.out = append(s.out, b[:n]...)
			s.eof = err != nil
			s.mu.Unlock()
			poke(s.more)
			if err != nil {
				return
			}
		}
	}()
	r.t.Cleanup(func() { s.close() })
	return s
}

func (r *rig) bash() *shell {
	s := r.shell("bash", "--norc", "--noprofile", "--noediting", "-i")
	s.expect("$ ")
	return s
}

func (r *rig) dash() *shell {
	s := r.shell("dash", "-i")
	s.expect("$ ")
	return s
}

func (s *shell) close() {
	_ = unix.Kill(s.cmd.Process.Pid, unix.SIGKILL)
	_ = s.cmd.Wait()
	s.tty.Close()
}

func (s *shell) send(text string) {
	s.t.Helper()
	if _, err := s.tty.WriteString(text); err != nil {
		s.t.Fatalf("typing %q: %v", text, err)
	}
}

// expect waits for text, and returns and forgets what came before and with it.
func (s *shell) expect(text string) string {
	s.t.Helper()
	return s.within(8*time.Second, text)
}

func (s *shell) within(d time.Duration, text string) string {
	s.t.Helper()
	end := time.After(d)
	for {
		s.mu.Lock()
		if i := strings.Index(string(s.out), text); i >= 0 {
			got := string(s.out[:i+len(text)])
			s.out = s.out[i+len(text):]
			s.mu.Unlock()
			return got
		}
		got, eof := string(s.out), s.eof
		s.mu.Unlock()
		if eof {
			s.t.Fatalf("waiting for %q: terminal closed after %q", text, got)
		}
		select {
		case <-s.more:
		case <-end:
			s.r.dump()
			s.t.Fatalf("no %q within %v, but %q", text, d, tail(got))
		}
	}
}

func tail(s string) string { return s[max(0, len(s)-2000):] }

// quiet checks that nothing more comes for a moment.
func (s *shell) quiet(d time.Duration) {
	s.t.Helper()
	time.Sleep(d)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.out) > 0 {
		s.t.Fatalf("unexpected %q", tail(string(s.out)))
	}
}

// run types a line and returns what it printed before the next prompt.
func (s *shell) run(line string) string {
	s.t.Helper()
	s.send(line + "\n")
	s.expect(line + "\r\n")
	out := s.expect("$ ")
	return strings.TrimSuffix(out, "$ ")
}
