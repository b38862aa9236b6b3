package pipe

import (
	"context"
	"sync"
)

// signal wakes those who wait for a condition, also when their context ends.
type signal struct {
	mu sync.Mutex
	ch chan struct{}
}

func (s *signal) broadcast() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}

// wait returns when cond holds or done is closed, or with the context's error.
func (s *signal) wait(ctx context.Context, done <-chan struct{}, cond func() bool) error {
	for {
		s.mu.Lock()
		if s.ch == nil {
			s.ch = make(chan struct{})
		}
		ch := s.ch
		s.mu.Unlock()
		if cond() {
			return nil
		}
		select {
		case <-ch:
		case <-done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
