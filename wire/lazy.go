package wire

import (
	"context"
	"sync"
	"time"
)

// lazyContext is a child of parent that can be cancelled. It costs nothing
// until somebody waits for it, which most handlers never do.
type lazyContext struct {
	parent context.Context

	mu        sync.Mutex
	cancelled bool
	real      context.Context // made by the first Done
	stop      context.CancelFunc
}

func (c *lazyContext) cancel() {
	c.mu.Lock()
	c.cancelled = true
	stop := c.stop
	c.mu.Unlock()
	if stop != nil {
		stop()
	}
}

func (c *lazyContext) made() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.real == nil {
		c.real, c.stop = context.WithCancel(c.parent)
		if c.cancelled {
			c.stop()
		}
	}
	return c.real
}

// Done implements context.Context.
func (c *lazyContext) Done() <-chan struct{} { return c.made().Done() }

// Err implements context.Context.
func (c *lazyContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.real != nil:
		return c.real.Err()
	case c.cancelled:
		return context.Canceled
	}
	return c.parent.Err()
}

// Value implements context.Context. Once made, the real context answers, so
// that package context finds it and hangs children on it.
func (c *lazyContext) Value(key any) any {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.real != nil {
		return c.real.Value(key)
	}
	return c.parent.Value(key)
}

// Deadline implements context.Context.
func (c *lazyContext) Deadline() (time.Time, bool) { return c.parent.Deadline() }
