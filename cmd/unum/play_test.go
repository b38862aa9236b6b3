package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// playProc is `unum play` as a shell starts it.
type playProc struct {
	*exec.Cmd
	name        string
	out, errOut bytes.Buffer
}

func startPlay(t *testing.T, argv ...string) *playProc {
	t.Helper()
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	p := &playProc{name: fmt.Sprintf("cmd-%d-%d", os.Getpid(), plays.Add(1))}
	p.Cmd = exec.Command(bin, append([]string{"play", "--name", p.name, "--"}, argv...)...)
	p.Stdout, p.Stderr = &p.out, &p.errOut
	p.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Process.Kill() })
	return p
}

// end waits, and returns the status as a shell counts it.
func (p *playProc) end(t *testing.T) int {
	t.Helper()
	timer := time.AfterFunc(30*time.Second, func() { p.Process.Kill() })
	defer timer.Stop()
	p.Wait()
	ws := p.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// A signal, at any moment, ends the play with nothing left behind.
func TestPlaySignals(t *testing.T) {
	needRoot(t)
	up := t.TempDir() + "/up"
	for _, c := range []struct {
		name string
		argv []string
		sig  unix.Signal
		at   time.Duration // 0: when the command has made the file up
		want int
	}{
		{"Ctrl-C", []string{"sleep", "100"}, unix.SIGINT, time.Second, 130},
		{"hang-up", []string{"sleep", "100"}, unix.SIGHUP, time.Second, 129},
		{"quit", []string{"sleep", "100"}, unix.SIGQUIT, time.Second, 131},
		{"terminate", []string{"sh", "-c", "trap 'exit 3' TERM; : > " + up + "; while :; do sleep 0.1; done"}, unix.SIGTERM, 0, 3},
		{"terminate what ignores it", []string{"sh", "-c", "trap '' TERM HUP; : > " + up + "; while :; do sleep 0.1; done"}, unix.SIGTERM, 0, 137},
		{"at 20 ms", []string{"sleep", "100"}, unix.SIGINT, 20 * time.Millisecond, 130},
		{"at 80 ms", []string{"sleep", "100"}, unix.SIGINT, 80 * time.Millisecond, 130},
		{"at 200 ms", []string{"sleep", "100"}, unix.SIGTERM, 200 * time.Millisecond, 143},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := startPlay(t, c.argv...)
			time.Sleep(c.at) // the moment is the point of the case
			for end := time.Now().Add(30 * time.Second); c.at == 0 && os.Remove(up) != nil; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("the command is not up after 30 s")
				}
			}
			p.Process.Signal(c.sig)
			if got := p.end(t); got != c.want {
				t.Errorf("status %d, want %d; %s", got, c.want, p.errOut.String())
			}
			if left := leftovers(p.name); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// What a killed play leaves is cleared by the next; its processes do not
// outlive it.
func TestPlayKilled(t *testing.T) {
	needRoot(t)
	p := startPlay(t, "sleep", "100")
	time.Sleep(time.Second)
	p.Process.Kill()
	p.end(t)
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		alive := false
		for _, l := range leftovers(p.name) {
			alive = alive || strings.Contains(l, "config.json")
		}
		if !alive {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("processes outlive the play: %q", leftovers(p.name))
		}
	}
	if next := startPlay(t, "true"); next.end(t) != 0 {
		t.Errorf("the next play: %s", next.errOut.String())
	}
	if left := leftovers(p.name); len(left) > 0 {
		t.Errorf("the next play left: %q", left)
	}
}

// Two plays at once do not meet.
func TestTwoPlays(t *testing.T) {
	needRoot(t)
	const script = `unum run -n n2 sh -c 'echo here $1; sleep 1' sh $1; unum ps`
	a, b := startPlay(t, "sh", "-c", script, "sh", "a"), startPlay(t, "sh", "-c", script, "sh", "b")
	for _, p := range []*playProc{a, b} {
		if code := p.end(t); code != 0 {
			t.Errorf("status %d: %s", code, p.errOut.String())
		}
	}
	if out := a.out.String(); !strings.HasPrefix(out, "here a\n") || strings.Contains(out, "sh b") {
		t.Errorf("play a printed %q", out)
	}
	if out := b.out.String(); !strings.HasPrefix(out, "here b\n") || strings.Contains(out, "sh a") {
		t.Errorf("play b printed %q", out)
	}
}
