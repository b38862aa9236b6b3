package sys

import (
	"testing"
	"time"
)

func TestTicker(t *testing.T) {
	k, err := NewTicker(10 * time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for range 5 {
		if err := k.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	if d := time.Since(began); d < 49*time.Millisecond {
		t.Errorf("five ticks of 10 ms in %v", d)
	}
	if err := k.Reset(time.Hour); err != nil {
		t.Fatal(err)
	}
	end := make(chan error)
	go func() { end <- k.Wait() }()
	select {
	case err := <-end:
		t.Errorf("a tick within the hour: %v", err)
	case <-time.After(30 * time.Millisecond):
		k.Close()
		if <-end == nil {
			t.Error("Wait of a closed ticker returned nil")
		}
	}
	if k.Wait() == nil {
		t.Error("Wait after Close returned nil")
	}
}
