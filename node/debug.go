package node

import (
	"context"
	"encoding/json"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"

	"golang.org/x/sys/unix"
)

// Debug is what the daemon says of itself in STATE/debug.json when it gets
// SIGUSR2. Beside it lies debug.txt: where every goroutine stands.
type Debug struct {
	Goroutines int    // without those that wait for a call of another node
	HeapInUse  uint64 // bytes, after a collection
	Threads    int
	FDs        int
	// What placement holds. A quiet daemon has none of the first four.
	Deputies, Bodies, Sessions, Runs int
	Stubs                            int
}

// debugOnSignal answers SIGUSR2 until ctx ends.
func (d *Daemon) debugOnSignal(ctx context.Context) {
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, unix.SIGUSR2)
	d.wg.Go(func() {
		defer signal.Stop(sigs)
		for {
			select {
			case <-sigs:
				if err := d.writeDebug(); err != nil {
					d.log.Warn("write what is asked by SIGUSR2", "err", err)
				}
			case <-ctx.Done():
				return
			}
		}
	})
}

func (d *Daemon) writeDebug() error {
	runtime.GC()
	runtime.GC() // what the first has finalized
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	v := Debug{
		Goroutines: runtime.NumGoroutine() - d.wire.Idle(), HeapInUse: m.HeapAlloc,
		Threads: entries("/proc/self/task"), FDs: entries("/proc/self/fd") - 1,
		Stubs: d.stubs.Len(),
	}
	v.Deputies, v.Bodies, v.Sessions, v.Runs = d.rexec.Counts()
	dir := d.cfg.StateDir()
	f, err := os.Create(filepath.Join(dir, "debug.txt"))
	if err != nil {
		return err
	}
	err = pprof.Lookup("goroutine").WriteTo(f, 1)
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	// The file appears whole.
	tmp := filepath.Join(dir, "debug.new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, "debug.json"))
}

func entries(dir string) int {
	l, _ := os.ReadDir(dir)
	return len(l)
}
