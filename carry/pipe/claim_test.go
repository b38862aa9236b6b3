package pipe

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
)

// find returns the process of the test's children whose argument list is args.
func find(t *testing.T, args string) int {
	t.Helper()
	pid := 0
	if !eventually(t, func() bool {
		for _, p := range descendants(os.Getpid()) {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p))
			if strings.ReplaceAll(strings.TrimRight(string(b), "\x00"), "\x00", " ") == args {
				pid = p
				return true
			}
		}
		return false
	}) {
		t.Fatalf("no process %q", args)
	}
	return pid
}

// settled waits until all of the test's children sleep in a call that lasts: a
// shell may still be forking, and what it has forked has not closed its pipes.
func settled(t *testing.T) {
	t.Helper()
	if !eventually(t, func() bool {
		for _, p := range descendants(os.Getpid()) {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", p))
			if err != nil {
				return false
			}
			if f := statFields(p); f == nil || f[0] == "Z" {
				continue
			} else if f[0] != "S" {
				return false
			}
			nr, err := strconv.Atoi(strings.Fields(string(b))[0])
			if err != nil || !isRest(nr) {
				return false
			}
		}
		return true
	}) {
		t.Fatal("the script does not come to rest")
	}
}

// claim asks a kind for descriptor n of a process.
func claim(t *testing.T, k carry.Kind, pid, n int) (*carry.Desc, error) {
	t.Helper()
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	path := fmt.Sprintf("/proc/%d/fd/%d", pid, n)
	fd := &carry.FD{Nums: []int{n}}
	if fd.Link, err = os.Readlink(path); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat(path, &fd.Stat); err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, n))
	fmt.Sscanf(strings.SplitN(string(b), "flags:", 2)[1], "%o", &fd.Flags)
	return k.Claim(t.Context(), &carry.Proc{HostPid: pid, PidFD: pidfd}, fd)
}

func TestClaim(t *testing.T) {
	const P = "sleep 71" // stands for the process in execve
	for _, c := range []struct {
		name, script string
		fd           int
		kind         byte
		want         string // "nil", "stays", "sole", "records"
	}{
		{"pipeline, middle", "sleep 70 | sleep 71 | sleep 72", 0, 'r', "sole"},
		{"pipeline, middle, out", "sleep 70 | sleep 71 | sleep 72", 1, 'w', "sole"},
		{"not a reader", "sleep 70 | sleep 71 | sleep 72", 1, 'r', "nil"},
		{"one after the other", "sleep 70 | (sleep 71; cat)", 0, 'r', "sole"},
		{"a loop", "sleep 70 | while :; do sleep 71; done", 0, 'r', "sole"},
		{"beside another reader", "sleep 70 | { sleep 71 <&0 & sleep 72 <&0 & wait; }", 0, 'r', "nil"},
		{"beside a shell that goes on", "sleep 70 | { sleep 71 <&0 & sleep 72 </dev/null; }", 0, 'r', "nil"},
		{"beside another writer", "{ sleep 71 & sleep 72; } | sleep 73", 1, 'w', "records"},
		{"one writer after the other", "{ sleep 71; sleep 72; } | sleep 73", 1, 'w', "sole"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			cmd := sh(c.script)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Wait()
			defer unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
			pid := find(t, P)
			settled(t)
			d, err := claim(t, r.side[0].kind(c.kind), pid, c.fd)
			got := "sole"
			var dd desc
			switch {
			case errors.Is(err, unum.ErrStaysHome):
				got = "stays"
			case err != nil:
				t.Fatal(err)
			case d == nil:
				got = "nil"
			default:
				if err := msgpack.Unmarshal(d.Data, &dd); err != nil {
					t.Fatal(err)
				}
				if dd.Records {
					got = "records"
				}
			}
			if got != c.want {
				t.Errorf("claimed as %s, want %s", got, c.want)
			}
		})
	}
}

// What a deputy holds it does not read, unless this daemon reads it for a body.
func TestClaimBesideDeputy(t *testing.T) {
	r := newRig(t)
	pr, pw := userPipe(t)
	pw.WriteString("ahead")
	deputy, cmd := exec.Command("sleep", "60"), exec.Command("sleep", "61")
	for _, c := range []*exec.Cmd{deputy, cmd} {
		c.Stdin = pr
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		defer c.Wait()
		defer c.Process.Kill()
	}
	user := dup(t, pr)
	pr.Close()
	find(t, "sleep 60")
	pid := find(t, "sleep 61")
	settled(t)
	if d, err := claim(t, r.side[0].c.Read(), pid, 0); d != nil || err != nil {
		t.Errorf("beside a reader: %v, %v", d, err)
	}
	user.Close()
	r.side[0].env.Deputy = func(pid int) bool { return pid == deputy.Process.Pid }
	d, err := claim(t, r.side[0].c.Read(), pid, 0)
	if d == nil || err != nil {
		t.Fatalf("beside a deputy: %v, %v", d, err)
	}
	var dd desc
	if err := msgpack.Unmarshal(d.Data, &dd); err != nil || string(dd.Prefill) != "ahead" {
		t.Errorf("prefilled %q, %v", dd.Prefill, err)
	}
	held, err := os.Open(fmt.Sprintf("/proc/%d/fd/0", pid)) // as a half at home does
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if d, err := claim(t, r.side[0].c.Read(), pid, 0); d != nil || err != nil {
		t.Errorf("beside a body: %v, %v", d, err)
	}
}

func TestClaimRefuses(t *testing.T) {
	r := newRig(t)
	pr, pw := userPipe(t)
	cmd := exec.Command("sleep", "62")
	cmd.Stdin, cmd.Stdout = pr, pw
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	pr.Close()
	pw.Close()
	pid := find(t, "sleep 62")
	for fd, k := range []carry.Kind{r.side[0].c.Read(), r.side[0].c.Write()} {
		if d, err := claim(t, k, pid, fd); !errors.Is(err, unum.ErrStaysHome) {
			t.Errorf("%s of a pipe with both ends in the body: %v, %v", k.Name(), d, err)
		}
	}
}
