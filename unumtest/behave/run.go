package behave

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Runner runs cases on the machine, or in the world, that it finds itself in.
// Base holds the helpers (bin), the scripts (scripts) and one scratch
// directory for each case (w).
type Runner struct {
	Base string
}

// CloseInherited makes sure that no descriptor that this process inherited by
// accident reaches a case.
func CloseInherited() {
	unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
}

// Mark is in the environment of every process of a case, so that what it
// leaves behind can be found.
const Mark = "UNUM_BEHAVE_CASE"

// Scratch is the working directory of a case, the same in every mode.
func (r *Runner) Scratch(c *Case) string {
	return filepath.Join(r.Base, "w", strings.NewReplacer("/", "-", ",", "-").Replace(c.Name))
}

// Run runs the case once, in a fresh scratch directory which it removes
// again. It returns when the script has ended and its output is closed, or
// when the time is up; then it has killed what it could find.
func (r *Runner) Run(ctx context.Context, c *Case, m Mode) *Result {
	res := &Result{}
	fault := func(err error) *Result {
		res.Fault = err.Error()
		return res
	}
	dir := r.Scratch(c)
	if err := os.RemoveAll(dir); err != nil {
		return fault(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fault(err)
	}
	defer os.RemoveAll(dir)
	script := filepath.Join(r.Base, "scripts", filepath.Base(dir))
	if err := os.MkdirAll(filepath.Dir(script), 0o755); err != nil {
		return fault(err)
	}
	if err := os.WriteFile(script, []byte(c.prologue(m)+c.Script), 0o755); err != nil {
		return fault(err)
	}
	// Root alone, as after a login; sudo leaves it in a group of its own.
	attr := &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{}}
	env := r.env(c, m, dir, script)
	if c.User != "" {
		cred, err := credential(c.User)
		if err != nil {
			return fault(err)
		}
		attr.Credential = cred
		if err := os.Chown(dir, int(cred.Uid), int(cred.Gid)); err != nil {
			return fault(err)
		}
		env = append(env, "USER="+c.User, "LOGNAME="+c.User)
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	if c.Tty != nil {
		r.runTty(ctx, c, res, c.argv(script), env, dir, attr)
	} else {
		r.runPlain(ctx, c, res, c.argv(script), env, dir, attr)
	}
	if res.Fault == "" {
		files, err := snapshot(dir)
		if err != nil {
			return fault(err)
		}
		res.Files = files
	}
	return res
}

func (r *Runner) runPlain(ctx context.Context, c *Case, res *Result, argv, env []string, dir string, attr *syscall.SysProcAttr) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Dir, cmd.SysProcAttr = env, dir, attr
	var outs [2]io.Reader
	var file *os.File
	if c.OutFile {
		f, err := os.CreateTemp(r.Base, "out")
		if err != nil {
			res.Fault = err.Error()
			return
		}
		defer os.Remove(f.Name())
		defer f.Close()
		file = f
		cmd.Stdout, cmd.Stderr = f, f
	} else {
		for i, w := range []*io.Writer{&cmd.Stdout, &cmd.Stderr} {
			pr, pw, err := os.Pipe()
			if err != nil {
				res.Fault = err.Error()
				return
			}
			defer pr.Close()
			defer pw.Close()
			outs[i], *w = pr, pw
		}
	}
	if err := cmd.Start(); err != nil {
		res.Fault = "start: " + err.Error()
		return
	}
	res.Pid = cmd.Process.Pid
	var read [2][]byte
	got := make(chan struct{}, 2)
	n := 0
	if file == nil {
		for i, w := range []io.Writer{cmd.Stdout, cmd.Stderr} {
			w.(*os.File).Close()
			n++
			go func() {
				var b bytes.Buffer
				io.Copy(&b, outs[i])
				read[i] = b.Bytes()
				got <- struct{}{}
			}()
		}
	}
	waited := make(chan struct{})
	go func() { cmd.Wait(); close(waited) }()
	all := make(chan struct{})
	go func() {
		<-waited
		for range n {
			<-got
		}
		close(all)
	}()
	select {
	case <-all:
	case <-ctx.Done():
		res.Hang = r.state(c)
		r.Kill(c)
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Process.Kill()
		select {
		case <-all:
		case <-time.After(3 * time.Second):
			res.Hang += "\nand it did not end when killed\n"
			return
		}
	}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok {
		res.Status = StatusOf(ws)
	}
	if file != nil {
		b, err := os.ReadFile(file.Name())
		if err != nil {
			res.Fault = err.Error()
		}
		res.Stdout = b
		return
	}
	res.Stdout, res.Stderr = read[0], read[1]
}

// prologue is put before the script, on its first line so that line numbers
// in messages stay.
func (c *Case) prologue(m Mode) string {
	where := "here"
	if m == Placed || m == Nested {
		where = "elsewhere"
	}
	if c.Shell == "python3" {
		return "import os, sys; os.environ['UNUM_NODE'] = '" + where + "'; "
	}
	s := "UNUM_NODE=" + where + "; export UNUM_NODE; "
	if c.Tty != nil {
		s += "unset HISTFILE ENV; PS1='@@ '; "
	}
	return s
}

func (c *Case) argv(script string) []string {
	switch {
	case c.Shell == "python3":
		return []string{"/usr/bin/python3", script}
	case c.Tty == nil:
		return []string{"/bin/" + c.Shell, script}
	case c.Shell == "bash" && c.Edit:
		return []string{"/bin/bash", "--noprofile", "--rcfile", script, "-i"}
	case c.Shell == "bash":
		return []string{"/bin/bash", "--noprofile", "--noediting", "--rcfile", script, "-i"}
	}
	return []string{"/bin/dash", "-i"} // reads $ENV
}

func (r *Runner) env(c *Case, m Mode, dir, script string) []string {
	where := "here"
	if m == Nested {
		where = "elsewhere"
	}
	e := []string{
		"PATH=" + r.Base + "/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
		"HOME=" + dir, "LC_ALL=C", "TZ=UTC", "TERM=xterm", "SHELL=/bin/sh",
		"UNUM_NODE=" + where, "HELPERS=" + r.Base + "/bin",
		Mark + "=" + r.Base + ":" + c.Name,
	}
	if c.Tty != nil && c.Shell == "dash" {
		e = append(e, "ENV="+script)
	}
	return e
}

func credential(name string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// Processes lists the live processes of a case that /proc shows here.
func (r *Runner) Processes(c *Case) []int {
	mark := []byte(Mark + "=" + r.Base + ":" + c.Name + "\x00")
	dir := r.Scratch(c)
	ents, _ := os.ReadDir("/proc")
	var pids []int
	for _, e := range ents {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		p := "/proc/" + e.Name()
		cwd, err := os.Readlink(p + "/cwd") // a deputy has no environment, but it has this
		if err != nil {
			continue // ended, or a zombie
		}
		env, _ := os.ReadFile(p + "/environ")
		if bytes.Contains(env, mark) || strings.TrimSuffix(cwd, " (deleted)") == dir {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Kill ends what Processes finds, each by its own PID.
func (r *Runner) Kill(c *Case) {
	for range 10 {
		pids := r.Processes(c)
		if len(pids) == 0 {
			return
		}
		for _, p := range pids {
			syscall.Kill(p, syscall.SIGKILL)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// state describes every process of the case: what it is and what it waits for.
func (r *Runner) state(c *Case) string {
	var b strings.Builder
	for _, pid := range r.Processes(c) {
		b.WriteString(Describe(pid))
	}
	return b.String()
}

// Describe puts a process into one line.
func Describe(pid int) string {
	p := fmt.Sprintf("/proc/%d/", pid)
	file := func(n string) string {
		b, _ := os.ReadFile(p + n)
		return strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " "))
	}
	var st, ns, ppid string
	for _, l := range strings.Split(file("status"), "\n") {
		k, v, _ := strings.Cut(l, ":")
		switch v = strings.TrimSpace(v); k {
		case "State":
			st = v
		case "NSpid":
			ns = v
		case "PPid":
			ppid = v
		}
	}
	exe, _ := os.Readlink(p + "exe")
	return fmt.Sprintf("  pid %s (ppid %s) %s wchan %s syscall %s exe %s: %s\n",
		strings.ReplaceAll(ns, "\t", "/"), ppid, st, file("wchan"), head(file("syscall"), 40), exe, head(file("cmdline"), 120))
}
