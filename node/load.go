package node

import (
	"math"
	"runtime"
	"time"

	"unum"
	"unum/sys"
	"unum/world/cgroup"
)

// loadMeter measures how busy the node is. The number of runnable tasks of the
// world is sampled and smoothed with the time constant that placement assumes
// (sched.Config.Tau).
//
// It has no timer of its own: measure is called by one goroutine, once a
// heartbeat.
type loadMeter struct {
	d     *Daemon
	load  unum.Load
	usage *cgroup.Usage // of the world; nil where that cannot be asked
	used  time.Duration // at the last sample
	last  time.Time     // the last sample
	taken int           // samples
}

const (
	loadPeriod = 200 * time.Millisecond
	loadTau    = time.Second
	// A world that used less than this part of a processor since the last
	// sample runs nothing now; pid 1's looks at the range are below it.
	loadIdle = 0.01
	// memoryEvery is how many samples one reading of the memory lasts.
	memoryEvery = 5
)

func (l *loadMeter) start(d *Daemon) {
	l.d = d
	l.load.CPUs = float64(runtime.NumCPU())
	if d.cfg.CPUs > 0 {
		l.load.CPUs = d.cfg.CPUs
	}
	l.usage, _ = d.world.Cgroup().Usage() // without it every sample looks at all processes
}

// measure returns the load; most of the time that of the last sample.
func (l *loadMeter) measure() unum.Load {
	// Ticks come a little early and late.
	if now := time.Now(); now.Sub(l.last) >= loadPeriod-loadPeriod/8 {
		l.sample(now)
	}
	return l.load
}

func (l *loadMeter) sample(now time.Time) {
	since := now.Sub(l.last)
	if l.last.IsZero() {
		since = 0
	}
	l.last = now
	running := 0
	if l.busy(since) {
		pids, err := l.d.world.HostPids()
		if err == nil {
			for _, p := range pids {
				if sys.Runnable(p) {
					running++
				}
			}
		}
	}
	keep := math.Exp(-float64(since) / float64(loadTau))
	l.load.Running = keep*l.load.Running + (1-keep)*float64(running)
	l.load.Guests = l.d.rexec.Guests.Count()
	if l.taken%memoryEvery == 0 {
		l.load.MemTotal, l.load.MemFree, _ = sys.MemFree()
	}
	l.taken++
	l.load.At = now.UnixNano()
}

// busy says whether anything of the world may be running. A world under the
// tightest cap gets more than loadIdle while it wants to run.
func (l *loadMeter) busy(since time.Duration) bool {
	if l.usage == nil {
		return true
	}
	used, err := l.usage.Read()
	if err != nil {
		return true
	}
	delta := used - l.used
	l.used = used
	return since == 0 || float64(delta) > loadIdle*float64(since)
}

func (l *loadMeter) stop() {
	if l.usage != nil {
		l.usage.Close()
	}
}
