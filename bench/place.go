package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"unum/bench/probe"
)

// place is a probe that runs somewhere: natively, or as the command of a play.
// It takes one request at a time.
type place struct {
	name   string
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	stderr bytes.Buffer
	dead   error
}

// native starts a probe on the machine itself.
func (b *bench) native(ctx context.Context) (*place, error) {
	return b.start(ctx, "native", b.self, "probe", "serve")
}

// play starts a cluster and a probe in it, which itself stays on n1. cpus 0 is
// no cap.
func (b *bench) play(ctx context.Context, nodes int, cpus float64) (*place, error) {
	args := []string{b.opt.Unum, "play", "--nodes", fmt.Sprint(nodes)}
	if cpus > 0 {
		args = append(args, "--cpus", fmt.Sprint(cpus))
	}
	args = append(args, "--", "env", "UNUM_NODE=here", b.self, "probe", "serve")
	return b.start(ctx, fmt.Sprintf("play of %d", nodes), args...)
}

func (b *bench) start(ctx context.Context, name string, argv ...string) (*place, error) {
	p := &place{name: name, cmd: exec.CommandContext(ctx, argv[0], argv[1:]...)}
	p.cmd.Dir = b.dir
	p.cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1", "LC_ALL=C")
	p.cmd.Stderr = &p.stderr
	// A signal from the terminal must reach the play through us, once.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = 20 * time.Second
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewReaderSize(out, 1<<20)
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	// It answers once it stands.
	if _, err := p.do(ctx, time.Minute, probe.Request{Op: probe.OpRead, N: 1}); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// do sends one request and waits for its answer. After a failure to answer the
// place is dead, and every later request fails with the same error.
func (p *place) do(ctx context.Context, limit time.Duration, q probe.Request) (probe.Result, error) {
	var r probe.Result
	if p.dead != nil {
		return r, p.dead
	}
	line, err := json.Marshal(q)
	if err != nil {
		return r, err
	}
	answer := make(chan error, 1)
	go func() {
		if _, err := p.in.Write(append(line, '\n')); err != nil {
			answer <- err
			return
		}
		line, err := p.out.ReadBytes('\n')
		if err == nil {
			err = json.Unmarshal(line, &r)
		}
		answer <- err
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err = <-answer:
		if err != nil {
			p.dead = fmt.Errorf("%s: %s: %w", p.name, q.Op, err)
		}
	case <-timer.C:
		p.dead = fmt.Errorf("%s: %s %v took more than %v", p.name, q.Op, q.Argv, limit)
	case <-ctx.Done():
		p.dead = ctx.Err()
	}
	if p.dead != nil {
		p.close() // ends the goroutine too
		if s := bytes.TrimSpace(p.stderr.Bytes()); len(s) > 0 {
			p.dead = fmt.Errorf("%w: %s", p.dead, s)
		}
		return probe.Result{}, p.dead
	}
	if r.Err != "" {
		return r, fmt.Errorf("%s: %s: %s", p.name, q.Op, r.Err)
	}
	return r, nil
}

// close ends the probe, and with it the play. It waits. What a native probe
// had started and left is killed.
func (p *place) close() error {
	defer syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	p.in.Close()
	ended := make(chan error, 1)
	go func() { ended <- p.cmd.Wait() }()
	for _, sig := range []syscall.Signal{0, syscall.SIGTERM, syscall.SIGKILL} {
		if sig != 0 {
			p.cmd.Process.Signal(sig)
		}
		timer := time.NewTimer(10 * time.Second)
		select {
		case err := <-ended:
			timer.Stop()
			return err
		case <-timer.C:
		}
	}
	return errors.New(p.name + " does not end")
}
