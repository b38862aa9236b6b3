package wire

import "sync"

// maxIdle is how many goroutines wait for calls.
const maxIdle = 32

// workers runs handlers. Its goroutines are kept for the next call: their
// stacks have grown already, which saves microseconds. The one that ended last
// is used first.
type workers struct {
	wg *sync.WaitGroup

	mu     sync.Mutex
	closed bool
	idle   []chan *inbound
}

// do runs in in a goroutine of its own. It does not wait.
func (w *workers) do(in *inbound) {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return
	}
	if n := len(w.idle); n > 0 {
		ch := w.idle[n-1]
		w.idle = w.idle[:n-1]
		w.mu.Unlock()
		ch <- in
		return
	}
	w.wg.Add(1)
	w.mu.Unlock()
	go w.work(in)
}

func (w *workers) work(in *inbound) {
	defer w.wg.Done()
	ch := make(chan *inbound, 1)
	for {
		in.run()
		w.mu.Lock()
		if w.closed || len(w.idle) >= maxIdle {
			w.mu.Unlock()
			return
		}
		w.idle = append(w.idle, ch)
		w.mu.Unlock()
		if in = <-ch; in == nil {
			return
		}
	}
}

// Idle is how many goroutines wait for the next call; at most 32.
func (e *Endpoint) Idle() int {
	e.pool.mu.Lock()
	defer e.pool.mu.Unlock()
	return len(e.pool.idle)
}

// close lets the idle ones end and takes no more work.
func (w *workers) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for _, ch := range w.idle {
		ch <- nil
	}
	w.idle = nil
}
