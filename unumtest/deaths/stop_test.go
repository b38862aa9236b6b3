package deaths

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stopAtKill traces a deputy until it is about to send itself sig. The caller's
// thread is locked, and detaches.
func stopAtKill(pid int, sig unix.Signal, traced chan<- struct{}) error {
	const seize, sysGood = 0x4206, 1 // PTRACE_SEIZE, PTRACE_O_TRACESYSGOOD
	if _, _, e := unix.Syscall6(unix.SYS_PTRACE, seize, uintptr(pid), 0, sysGood, 0, 0); e != 0 {
		return e
	}
	if err := unix.PtraceInterrupt(pid); err != nil {
		return err
	}
	for first := true; ; first = false {
		var ws unix.WaitStatus
		if _, err := unix.Wait4(pid, &ws, unix.WALL, nil); err != nil {
			return err
		}
		if !ws.Stopped() {
			return errors.New("the deputy has ended")
		}
		if first {
			close(traced)
		}
		var regs unix.PtraceRegs
		if ws.StopSignal() == unix.SIGTRAP|0x80 && unix.PtraceGetRegs(pid, &regs) == nil &&
			regs.Orig_rax == unix.SYS_KILL && unix.Signal(regs.Rsi) == sig && int64(regs.Rax) == -int64(unix.ENOSYS) {
			return nil
		}
		if err := unix.PtraceSyscall(pid, 0); err != nil {
			return err
		}
	}
}

func state(pid int) string {
	b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	_, after, _ := strings.Cut(string(b), ") ")
	return after[:min(1, len(after))]
}

func (c *cluster) awaitState(pid int, want string) {
	c.t.Helper()
	for end := time.Now().Add(20 * time.Second); !strings.Contains(want, state(pid)); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("process %d is %s, want one of %s", pid, state(pid), want)
		}
	}
}

// A SIGCONT that comes between two calls of a stop that a deputy is beginning
// continues it, and its body.
func TestContinueInBeginningStop(t *testing.T) {
	c := start(t, 2)
	for _, how := range []string{"$p", "-$p"} {
		gate := c.gate("go")
		sent := filepath.Join(c.dir, "sent")
		os.Remove(sent)
		j := c.run(`exec perl -e '
			my $p = fork // die;
			if (!$p) { setpgrp; $ENV{UNUM_NODE} = "n2"; exec "/bin/sleep", "1000" }
			open F, "<", "$ENV{D}/go"; <F>;
			kill("CONT", ` + how + `) == 1 or die "kill: $!";
			open S, ">", "$ENV{D}/sent"; close S;
			waitpid $p, 0; print $? & 127, "\n"'`)
		pass := c.arrived(gate)
		body := c.await("the body", 1, func() []int { return c.find(1, "sleep") })[0]
		deputy := c.await("the deputy", 1, func() []int { return c.deputies(0, "sleep") })[0]

		traced, reached, detach, result := make(chan struct{}), make(chan error, 1), make(chan struct{}), make(chan error, 1)
		go func() {
			runtime.LockOSThread() // the tracer is a thread, and ends with the test
			err := stopAtKill(deputy, unix.SIGTSTP, traced)
			reached <- err
			<-detach
			if err == nil {
				err = unix.PtraceDetach(deputy)
			}
			result <- err
		}()
		<-traced
		unix.Kill(body, unix.SIGTSTP)
		select {
		case err := <-reached:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the deputy does not begin to stop")
		}
		c.awaitState(body, "T")
		pass()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if _, err := os.Stat(sent); err == nil {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("kill does not return: %s", j.err.String())
			}
		}
		close(detach)
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		c.awaitState(body, "S")
		c.awaitState(deputy, "S")
		unix.Kill(body, unix.SIGTERM)
		j.want(20*time.Second, 0, "15")
	}
}
