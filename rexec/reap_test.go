package rexec

import (
	"log/slog"
	"testing"

	"unum/deputy"
)

// A child may end in the moment in which the agent of an idle session is ended:
// what the agent said last is heard when the session has none any more.
func TestHeardAfterRetirement(t *testing.T) {
	s := &parent{agent: deputy.Ended(65600), settled: make(chan struct{})}
	settled := s.settled
	w := s.watch(77, slog.New(slog.DiscardHandler), func([]childEvent) {})
	s.agent = nil
	w.reap()
	select {
	case <-settled:
	default:
		t.Error("what waits for its first round waits for ever")
	}
}
