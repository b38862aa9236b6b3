package sys

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// defaultSlack is what Linux gives a process that nobody gave another.
	defaultSlack = 50 * time.Microsecond

	// processors is how many goroutines may run or sit in a system call before
	// one has to wait for the monitor to take a processor from another.
	processors = 8

	// mendEvery is how often threads that have the monitor's slack are looked for.
	mendEvery = 30 * time.Second
)

// CalmMonitor lets the monitor thread of Go's runtime sleep longer by late,
// until ctx ends. It is for a daemon that mostly sleeps: each time it wakes the
// monitor wakes too, and then looks about every 20 µs what to do, which costs as
// much as a trapped call does. Mostly it looks for processors that are held by
// system calls; this program has some to spare instead. If more of its calls
// wait at once than it has processors, the others wait that much longer.
//
// What is set is the thread's timer slack (/proc/PID/timerslack_ns, 4.6). A
// thread that the monitor makes inherits it, as does a process that such a
// thread makes: the former are mended from time to time, the latter calls
// DefaultSlack if it is to run what is not ours.
func CalmMonitor(ctx context.Context, late time.Duration) error {
	monitor, err := monitorThread()
	if err != nil {
		return err
	}
	if err := setSlack(monitor, late); err != nil {
		return err
	}
	runtime.GOMAXPROCS(max(processors, runtime.GOMAXPROCS(0)))
	tick, err := NewTicker(mendEvery)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { tick.Close() })
	go func() {
		known := map[int]bool{monitor: true}
		for tick.Wait() == nil {
			known = mendSlack(known)
		}
	}()
	return nil
}

// mendSlack gives the threads that are not known the usual slack, and returns
// those that are there.
func mendSlack(known map[int]bool) map[int]bool {
	tids, err := threads()
	if err != nil {
		return known
	}
	now := map[int]bool{}
	for _, tid := range tids {
		if known[tid] || setSlack(tid, defaultSlack) == nil {
			now[tid] = true
		}
	}
	return now
}

// monitorThread returns the thread that the runtime makes before all others:
// numbers are given in turn.
func monitorThread() (int, error) {
	tids, err := threads()
	if err != nil {
		return 0, err
	}
	link, err := os.Readlink("/proc/self")
	if err != nil {
		return 0, err
	}
	main, err := strconv.Atoi(link)
	if err != nil {
		return 0, err
	}
	const all = 1 << 22 // PID_MAX_LIMIT
	first, least := 0, all
	for _, tid := range tids {
		if after := (tid - main + all) % all; after > 0 && after < least {
			first, least = tid, after
		}
	}
	if first == 0 {
		return 0, fmt.Errorf("the runtime's monitor: %w", unix.ESRCH)
	}
	return first, nil
}

func threads() ([]int, error) {
	names, err := ReadDirNames("/proc/self/task")
	if err != nil {
		return nil, err
	}
	var tids []int
	for _, name := range names {
		if tid, err := strconv.Atoi(name); err == nil {
			tids = append(tids, tid)
		}
	}
	return tids, nil
}

// setSlack sets a thread's timer slack.
func setSlack(tid int, d time.Duration) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/timerslack_ns", tid), strconv.AppendInt(nil, int64(d), 10), 0)
}

// DefaultSlack gives the calling thread, and what it makes from now on, the
// timer slack that programs expect. The thread must be locked.
func DefaultSlack() error {
	return unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(defaultSlack), 0, 0, 0)
}
