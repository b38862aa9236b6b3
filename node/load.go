package node

import (
	"math"
	"runtime"
	"sync"
	"time"

	"unum"
	"unum/sys"
)

// loadMeter measures how busy the node is. The number of runnable tasks of the
// world is sampled and smoothed with the time constant that placement assumes
// (sched.Config.Tau).
type loadMeter struct {
	mu   sync.Mutex
	load unum.Load
	quit chan struct{}
	wg   sync.WaitGroup
}

const (
	loadPeriod = 200 * time.Millisecond
	loadTau    = time.Second
)

func (l *loadMeter) start(d *Daemon) {
	l.quit = make(chan struct{})
	l.load.CPUs = float64(runtime.NumCPU())
	if d.cfg.CPUs > 0 {
		l.load.CPUs = d.cfg.CPUs
	}
	l.sample(d, 0)
	l.wg.Go(func() {
		t := time.NewTicker(loadPeriod)
		defer t.Stop()
		last := time.Now()
		for {
			select {
			case <-t.C:
				now := time.Now()
				l.sample(d, now.Sub(last))
				last = now
			case <-l.quit:
				return
			}
		}
	})
}

func (l *loadMeter) sample(d *Daemon, since time.Duration) {
	running := 0
	pids, err := d.world.HostPids()
	if err == nil {
		for _, p := range pids {
			if sys.Runnable(p) {
				running++
			}
		}
	}
	total, free, _ := sys.MemFree()
	keep := math.Exp(-float64(since) / float64(loadTau))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.load.Running = keep*l.load.Running + (1-keep)*float64(running)
	l.load.Guests = len(d.rexec.Guests.Bodies())
	l.load.MemTotal, l.load.MemFree = total, free
	l.load.At = time.Now().UnixNano()
}

func (l *loadMeter) get() unum.Load {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.load
}

func (l *loadMeter) stop() {
	if l.quit != nil {
		close(l.quit)
		l.wg.Wait()
	}
}
