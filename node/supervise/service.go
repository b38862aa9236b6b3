package supervise

import (
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	backoffMin = 10 * time.Millisecond
	backoffMax = 2 * time.Second
	logMax     = 16 << 20 // a log larger than this is put aside when its service starts
)

// service is a program that is kept running.
//
//	stopped ──start──▶ running ──died──▶ stopped, to be started at due
type service struct {
	name string
	argv []string
	nice int
	log  string
	// files lists what it inherits behind the standard streams; nil: nothing.
	files func() ([]*os.File, error)

	pid   int           // 0: stopped
	began time.Time     // of the last start
	due   time.Time     // when to start
	back  time.Duration // wait after the next quick death
}

// start runs the service. Preconditions: the caller is the goroutine that
// reaps, on a locked thread.
func (s *service) start(now time.Time) error {
	if st, err := os.Stat(s.log); err == nil && st.Size() > logMax {
		os.Rename(s.log, s.log+".1")
	}
	out, err := os.OpenFile(s.log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	defer out.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	files := []uintptr{null.Fd(), out.Fd(), out.Fd()}
	if s.files != nil {
		more, err := s.files()
		if err != nil {
			return err
		}
		for _, f := range more {
			files = append(files, f.Fd())
		}
	}
	// The child inherits the thread's priority, and all its threads with it;
	// set afterwards it would reach the first thread only. What the caller may
	// not do is no reason not to start.
	unix.Setpriority(unix.PRIO_PROCESS, 0, s.nice)
	defer unix.Setpriority(unix.PRIO_PROCESS, 0, 0)
	pid, err := syscall.ForkExec("/proc/self/exe", s.argv, &syscall.ProcAttr{
		Dir:   "/",
		Env:   environ(),
		Files: files,
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	runtime.KeepAlive(out)
	if err != nil {
		return err
	}
	s.pid, s.began = pid, now
	return nil
}

// died says when to start again: at once, but after a rising wait when it
// lives for less than a second every time.
func (s *service) died(now time.Time) {
	s.pid = 0
	if now.Sub(s.began) >= time.Second {
		s.back = 0
	}
	s.due = now.Add(s.back)
	s.back = min(max(2*s.back, backoffMin), backoffMax)
}

// environ is what services get of the environment: nothing of the shell that
// happened to start the cluster but what is meant for them.
func environ() []string {
	env := []string{"PATH=" + pathOr("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")}
	for _, kv := range os.Environ() {
		for _, p := range []string{"UNUM_DEBUG", "GODEBUG=", "GOTRACEBACK=", "GOCOVERDIR=", "HOME="} {
			if strings.HasPrefix(kv, p) {
				env = append(env, kv)
			}
		}
	}
	return env
}

func pathOr(def string) string {
	if p := os.Getenv("PATH"); p != "" {
		return p
	}
	return def
}
