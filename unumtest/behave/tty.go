package behave

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// stepTime is how long one step of a dialogue may take, at most a case's time.
const stepTime = 20 * time.Second

// runTty runs a case on a terminal of its own and holds its dialogue. Steps:
//
//	send "text"     type it; Go's escapes
//	want "text"     wait until it shows up behind what was wanted last
//	file NAME       wait until the file exists in the scratch directory
//	holds NAME "t"  wait until it holds that text
//	again "a" "b"   type a, once a second, until b shows up
//	touch NAME      make it
//	quiet "text"    be sure, for half a second, that it does not show up
//	size 40x100     set the terminal's rows and columns
//	hangup          close the terminal
//
// The screen is not compared between the runs, the wants are what counts,
// and the status and files.
func (r *Runner) runTty(ctx context.Context, c *Case, res *Result, argv, env []string, dir string, attr *syscall.SysProcAttr) {
	ptmx, tty, err := pty.Open()
	if err != nil {
		res.Fault = err.Error()
		return
	}
	if ptmx, err = pollable(ptmx); err != nil {
		tty.Close()
		res.Fault = err.Error()
		return
	}
	s := &screen{wake: make(chan struct{}, 1)}
	closeMaster := sync.OnceFunc(func() { ptmx.Close() })
	defer closeMaster()
	setSize(ptmx, 24, 80)
	if attr.Credential != nil {
		tty.Chown(int(attr.Credential.Uid), -1)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	attr.Setctty = true
	cmd.Env, cmd.Dir, cmd.SysProcAttr = env, dir, attr
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	err = cmd.Start()
	tty.Close()
	if err != nil {
		res.Fault = "start: " + err.Error()
		return
	}
	res.Pid = cmd.Process.Pid
	readDone := make(chan struct{})
	go func() {
		defer close(readDone)
		s.readFrom(ptmx)
	}()
	waited := make(chan struct{})
	go func() { cmd.Wait(); close(waited) }()
	stepTime := min(stepTime, c.Timeout)
	for _, step := range c.Tty {
		if err := s.step(ctx, stepTime, step, ptmx, dir, closeMaster); err != nil {
			res.Fault = fmt.Sprintf("dialogue: %s: %v\n%s", step, err, r.state(c))
			break
		}
	}
	end := time.After(stepTime)
	if res.Fault != "" {
		end = time.After(0)
	}
	select {
	case <-waited:
	case <-ctx.Done():
		end = time.After(0)
		res.Hang = r.state(c)
	case <-end:
		if res.Fault == "" {
			res.Hang = r.state(c)
		}
	}
	select {
	case <-waited:
	default:
		r.Kill(c)
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Process.Kill()
		closeMaster()
		select {
		case <-waited:
		case <-time.After(3 * time.Second):
			res.Hang += "\nand it did not end when killed\n"
			res.Stdout = s.bytes()
			return
		}
	}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok {
		res.Status = StatusOf(ws)
	}
	// Background jobs may still hold the terminal; what they write now no
	// longer counts.
	select {
	case <-readDone:
	case <-time.After(200 * time.Millisecond):
	}
	closeMaster()
	res.Stdout = s.bytes()
}

// screen is what came out of a terminal, and up to where it was looked at.
type screen struct {
	mu   sync.Mutex
	buf  []byte
	seen int
	wake chan struct{}
}

func (s *screen) readFrom(f *os.File) {
	b := make([]byte, 4096)
	for {
		n, err := f.Read(b)
		s.mu.Lock()
		s.buf = append(s.buf, b[:n]...)
		s.mu.Unlock()
		select {
		case s.wake <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

func (s *screen) bytes() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]byte(nil), s.buf...)
}

func (s *screen) find(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := strings.Index(string(s.buf[s.seen:]), text)
	if i < 0 {
		return false
	}
	s.seen += i + len(text)
	return true
}

func (s *screen) step(ctx context.Context, within time.Duration, step string, ptmx *os.File, dir string, hangup func()) error {
	verb, arg, _ := strings.Cut(step, " ")
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	poll := func(done func() bool) error {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for !done() {
			select {
			case <-s.wake:
			case <-tick.C:
			case <-ctx.Done():
				return fmt.Errorf("nothing of the kind after %v", within)
			}
		}
		return nil
	}
	switch verb {
	case "send", "want":
		text, err := strconv.Unquote(arg)
		if err != nil {
			return err
		}
		if verb == "want" {
			return poll(func() bool { return s.find(text) })
		}
		_, err = ptmx.WriteString(text)
		return err
	case "file":
		return poll(func() bool { _, err := os.Stat(dir + "/" + arg); return err == nil })
	case "holds":
		name, quoted, _ := strings.Cut(arg, " ")
		text, err := strconv.Unquote(quoted)
		if err != nil {
			return err
		}
		return poll(func() bool { b, err := os.ReadFile(dir + "/" + name); return err == nil && string(b) == text })
	case "again":
		words := strings.SplitAfterN(arg, `" `, 2)
		if len(words) != 2 {
			return errors.New("it wants two strings")
		}
		text, err1 := strconv.Unquote(strings.TrimSpace(words[0]))
		want, err2 := strconv.Unquote(words[1])
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		var next time.Time
		return poll(func() bool {
			if time.Now().After(next) {
				ptmx.WriteString(text)
				next = time.Now().Add(time.Second)
			}
			return s.find(want)
		})
	case "touch":
		return os.WriteFile(dir+"/"+arg, nil, 0o644)
	case "quiet":
		text, err := strconv.Unquote(arg)
		if err != nil {
			return err
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
		}
		if s.find(text) {
			return errors.New("it showed up")
		}
		return nil
	case "size":
		var rows, cols uint16
		if _, err := fmt.Sscanf(arg, "%dx%d", &rows, &cols); err != nil {
			return err
		}
		return setSize(ptmx, rows, cols)
	case "hangup":
		hangup()
		return nil
	}
	return fmt.Errorf("no step is called %q", verb)
}

// setSize leaves the file as it is: Fd would make it block.
func setSize(f *os.File, rows, cols uint16) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var e error
	err = c.Control(func(fd uintptr) {
		e = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
	return errors.Join(err, e)
}

// pollable returns the same terminal as a file whose Close ends a read.
func pollable(f *os.File) (*os.File, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
