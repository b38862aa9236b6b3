package unumtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// PlayDir is where every play of this machine has its directory.
const PlayDir = "/run/unum/play"

// Options say what play to start.
type Options struct {
	Nodes   int      // 3 if zero
	Args    []string // further flags of `unum play`
	Env     []string // added to this process's environment
	Dir     string   // of the command
	Command []string // in the world
}

// Play is a running `unum play`. Its command's standard streams are the pipes;
// the caller reads Stdout.
type Play struct {
	Name   string // of the cluster, as --cluster wants it
	Stdin  io.WriteCloser
	Stdout io.Reader

	bin    string
	cmd    *exec.Cmd
	done   chan struct{}
	ledger *Ledger

	mu     sync.Mutex
	stderr bytes.Buffer
}

var started atomic.Int32

// Start starts a play with a command in it. It returns at once; the command
// says itself when it is ready.
func Start(o Options) (*Play, error) {
	bin, err := Build()
	if err != nil {
		return nil, err
	}
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	p := &Play{bin: bin, done: make(chan struct{})}
	p.Name = fmt.Sprintf("test-%d-%d", os.Getpid(), started.Add(1))
	args := append([]string{"play", "--name", p.Name, "--nodes", strconv.Itoa(o.Nodes)}, o.Args...)
	args = append(append(args, "--"), o.Command...)
	p.cmd = exec.Command(bin, args...)
	p.cmd.Env = append(os.Environ(), o.Env...)
	p.cmd.Dir = o.Dir
	// A group of its own, so that a Ctrl-C for go test does not reach the play
	// before the test has cleaned up.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Stderr = lockedWriter{p}
	// Pipes of our own: those of package exec are closed by Wait while a
	// reader may still be at work.
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		inR.Close()
		inW.Close()
		return nil, err
	}
	p.cmd.Stdin, p.cmd.Stdout = inR, outW
	p.Stdin, p.Stdout = inW, outR
	err = p.cmd.Start()
	inR.Close()
	outW.Close()
	if err != nil {
		inW.Close()
		outR.Close()
		return nil, err
	}
	go func() {
		p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

type lockedWriter struct{ p *Play }

func (w lockedWriter) Write(b []byte) (int, error) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	return w.p.stderr.Write(b)
}

// Stderr is what the play and its command have written to standard error.
func (p *Play) Stderr() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.String()
}

// Done is closed when the play has ended.
func (p *Play) Done() <-chan struct{} { return p.done }

// Wait waits for the end of the play and returns its exit code, −1 after a
// signal.
func (p *Play) Wait(ctx context.Context) (int, error) {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return -1, ctx.Err()
	}
}

// Pid is the PID of `unum play` itself.
func (p *Play) Pid() int { return p.cmd.Process.Pid }

// Stop ends the command by closing its standard input and waits for the play
// to have cleaned up. After ten seconds it is interrupted, after twenty
// killed; both are errors.
func (p *Play) Stop() error {
	p.Stdin.Close()
	if p.ledger != nil {
		p.ledger.Close()
	}
	var errs error
	for _, step := range []struct {
		sig  syscall.Signal
		wait time.Duration
	}{{0, 10 * time.Second}, {syscall.SIGINT, 10 * time.Second}, {syscall.SIGKILL, 5 * time.Second}} {
		if step.sig != 0 {
			errs = errors.Join(errs, fmt.Errorf("the play did not end by itself and got %v", step.sig))
			p.cmd.Process.Signal(step.sig)
		}
		select {
		case <-p.done:
			return errs
		case <-time.After(step.wait):
		}
	}
	return errors.Join(errs, errors.New("and does not die"))
}

// Kill kills the play's own process, as somebody careless would.
func (p *Play) Kill() {
	p.Stdin.Close()
	p.cmd.Process.Kill()
	<-p.done
}

// Info waits until the play has written down its nodes and returns them.
func (p *Play) Info(ctx context.Context) (*Info, error) {
	for {
		b, err := os.ReadFile(filepath.Join(PlayDir, p.Name, "play.json"))
		var i Info
		if err == nil && json.Unmarshal(b, &i) == nil && i.Pid == p.Pid() && len(i.Nodes) > 0 {
			return &i, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("play %s has not come up: %w", p.Name, ctx.Err())
		case <-p.done:
			return nil, fmt.Errorf("the play has ended: %s", p.Stderr())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Unum runs the command line against the play, from outside, and returns its
// standard output.
func (p *Play) Unum(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, p.bin, append([]string{"--cluster", p.Name}, args...)...)
	var errb bytes.Buffer
	cmd.Stderr = &errb
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("unum %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errb.String()))
	}
	return string(out), err
}

// Dump is what to look at when something hangs: the processes the cluster
// knows, and the end of each daemon's log.
func (p *Play) Dump() string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var b strings.Builder
	out, err := p.Unum(ctx, "ps")
	fmt.Fprintf(&b, "unum ps: %s %v\n", clip(out, 6000), err)
	logs, _ := filepath.Glob(filepath.Join(PlayDir, p.Name, "*", "*.log"))
	for _, l := range logs {
		t, _ := os.ReadFile(l)
		var lines []string
		for _, line := range strings.Split(strings.TrimSpace(string(t)), "\n") {
			if line != "" && !strings.Contains(line, "level=DEBUG") && !strings.Contains(line, "etcd: ") {
				lines = append(lines, line)
			}
		}
		if n := len(lines); n > 0 {
			fmt.Fprintf(&b, "end of %s:\n  %s\n", l, strings.Join(lines[max(0, n-8):], "\n  "))
		}
	}
	if s := p.Stderr(); s != "" {
		fmt.Fprintf(&b, "standard error of the play:\n%s\n", clip(s, 3000))
	}
	return b.String()
}

// Deaths tells which daemons and file servers have died since the play began,
// and what they wrote last if that was a panic; "" if none.
func (p *Play) Deaths() string {
	var b strings.Builder
	logs, _ := filepath.Glob(filepath.Join(PlayDir, p.Name, "*", "init.log"))
	for _, l := range logs {
		t, _ := os.ReadFile(l)
		died := false
		for line := range strings.Lines(string(t)) {
			if strings.Contains(line, "msg=died ") {
				died = true
				b.WriteString(line)
			}
		}
		if !died {
			continue
		}
		for _, name := range []string{"daemon.log", "fs.log"} {
			t, _ := os.ReadFile(filepath.Join(filepath.Dir(l), name))
			for _, sign := range []string{"\npanic: ", "\nfatal error: "} {
				if i := strings.Index(string(t), sign); i >= 0 {
					fmt.Fprintf(&b, "%s:%s\n", name, clip(string(t[i:]), 4000))
				}
			}
		}
	}
	return b.String()
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}
