package sys

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func slackOf(t *testing.T, tid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/timerslack_ns", tid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestCalmMonitor(t *testing.T) {
	if err := CalmMonitor(t.Context(), 2*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	monitor, err := monitorThread()
	if err != nil {
		t.Fatal(err)
	}
	if s := slackOf(t, monitor); s != "2000000" {
		t.Errorf("the monitor's slack is %s", s)
	}
	runtime.LockOSThread() // and so it ends with the test
	self := unix.Gettid()
	if err := setSlack(self, 2*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	known := mendSlack(map[int]bool{monitor: true})
	if s := slackOf(t, self); s != "50000" {
		t.Errorf("a thread's slack is %s", s)
	}
	if s := slackOf(t, monitor); s != "2000000" {
		t.Errorf("the monitor's slack is %s", s)
	}
	if !known[self] || !known[monitor] {
		t.Errorf("known: %v", known)
	}
	if err := setSlack(self, 2*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if err := DefaultSlack(); err != nil {
		t.Fatal(err)
	}
	if s := slackOf(t, self); s != "50000" {
		t.Errorf("my slack is %s", s)
	}
}

// The thread that is taken for the monitor is what sleeps when nothing else
// makes it: it looks about although no goroutine runs.
func TestMonitorThread(t *testing.T) {
	monitor, err := monitorThread()
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", monitor))
		if err != nil {
			t.Skip(err)
		}
		if strings.HasPrefix(string(b), fmt.Sprint(unix.SYS_NANOSLEEP, " ")) {
			return
		}
	}
	t.Error("it never slept for a time")
}
