package probe

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Main is `PROGRAM probe ROLE`. It returns the exit status.
func Main(args []string) int {
	err := errors.New("usage: probe serve")
	if len(args) > 0 {
		switch args[0] {
		case roleServe:
			err = serve()
		case roleEcho:
			err = echo()
		case roleCopy:
			err = copyAll()
		case roleRaw:
			err = raw()
		case roleAppend:
			err = appendLog(args[1:])
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		return 1
	}
	return 0
}

// server answers requests until its input ends.
type server struct {
	self    string
	started map[int]*exec.Cmd
}

func serve() error {
	// The garbage collector would run in the middle of a measurement, and
	// preempt the child of a vfork; nothing here needs it.
	debug.SetGCPercent(-1)
	if os.Getenv("GODEBUG") != "asyncpreemptoff=1" {
		return errors.New("GODEBUG=asyncpreemptoff=1 is not set")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	in, out, err := hide()
	if err != nil {
		return err
	}
	s := &server{self: self, started: map[int]*exec.Cmd{}}
	defer s.stopAll()
	lines := bufio.NewReader(in)
	enc := json.NewEncoder(out)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var q Request
		var r Result
		if err := json.Unmarshal(line, &q); err != nil {
			return err
		}
		if err := s.do(&q, &r); err != nil {
			r.Err = err.Error()
		}
		if err := enc.Encode(&r); err != nil {
			return err
		}
	}
}

// hide moves the standard descriptors out of the children's way: what they
// inherit is /dev/null.
func hide() (in, out *os.File, err error) {
	var fds [2]int
	for i := range fds {
		if fds[i], err = unix.FcntlInt(uintptr(i), unix.F_DUPFD_CLOEXEC, 10); err != nil {
			return nil, nil, err
		}
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	defer null.Close()
	for i := range 3 {
		if err := unix.Dup3(int(null.Fd()), i, 0); err != nil {
			return nil, nil, err
		}
	}
	return os.NewFile(uintptr(fds[0]), "requests"), os.NewFile(uintptr(fds[1]), "results"), nil
}

func (s *server) do(q *Request, r *Result) (err error) {
	env := environ(q.Env)
	switch q.Op {
	case OpExec:
		r.NS, err = execLoop(q.Argv, env, q.N)
	case OpRead:
		r.NS, err = readLoop(q.N)
	case OpRun:
		err = s.run(q, r, env)
	case OpStart:
		r.N, err = s.start(q, env)
	case OpStop:
		err = s.stop(q.N)
	case OpPing:
		r.NS, err = s.ping(env, q.N)
	case OpPipe:
		r.NS, err = s.pipe(env, q.N)
	case OpKey:
		r.NS, err = s.key(env, q.N)
	case OpLog:
		r.NS, err = s.log(env, q.Dir, q.N)
	default:
		err = fmt.Errorf("no operation %q", q.Op)
	}
	return err
}

// environ is this process's environment with more, each name once: who reads
// it takes the first.
func environ(more []string) []string {
	var env []string
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if !slices.ContainsFunc(more, func(m string) bool { return strings.HasPrefix(m, name+"=") }) {
			env = append(env, e)
		}
	}
	return append(env, more...)
}

func (s *server) run(q *Request, r *Result, env []string) error {
	cmd := exec.Command(q.Argv[0], q.Argv[1:]...)
	cmd.Env, cmd.Dir = env, q.Dir
	// To a file: a pipe would have to be read beside what is measured.
	f, err := os.CreateTemp(q.Dir, ".probe-out")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	t := time.Now()
	err = cmd.Run()
	r.NS = []int64{int64(time.Since(t))}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return err
	}
	r.Status = cmd.ProcessState.ExitCode()
	b, err := os.ReadFile(f.Name())
	r.Out = string(b[max(0, len(b)-64<<10):])
	return err
}

func (s *server) start(q *Request, env []string) (int, error) {
	cmd := exec.Command(q.Argv[0], q.Argv[1:]...)
	cmd.Env, cmd.Dir = env, q.Dir
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	s.started[cmd.Process.Pid] = cmd
	return cmd.Process.Pid, nil
}

func (s *server) stop(pid int) error {
	cmd := s.started[pid]
	if cmd == nil {
		return fmt.Errorf("%d was not started here", pid)
	}
	delete(s.started, pid)
	cmd.Process.Signal(syscall.SIGTERM)
	cmd.Wait()
	return nil
}

func (s *server) stopAll() {
	for pid := range s.started {
		s.stop(pid)
	}
}

// readLoop reads a byte at a time from /dev/zero: n batches of 2,000.
func readLoop(n int) ([]int64, error) {
	const batch = 2000
	f, err := os.Open("/dev/zero")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fd := int(f.Fd())
	ns := make([]int64, 0, n)
	for range n {
		t := time.Now()
		for range batch {
			if err := readByte(fd); err != nil {
				return nil, err
			}
		}
		ns = append(ns, int64(time.Since(t))/batch)
	}
	return ns, nil
}
