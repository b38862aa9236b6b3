package file

import (
	"context"
	"os"
	"testing"
	"time"

	"unum/carry"
	"unum/carry/carrytest"
)

// slowKeeper keeps when it is told to.
type slowKeeper struct {
	*carrytest.Keeper
	asked, go_ chan struct{}
}

func (k *slowKeeper) Keep(ctx context.Context, name string, f *os.File) error {
	close(k.asked)
	<-k.go_
	return k.Keeper.Keep(ctx, name, f)
}

// The guest closes a description while home has it kept, as the deputy was
// killed: nothing of it stays with the keeper.
func TestReleasedWhileItIsKept(t *testing.T) {
	keep := &slowKeeper{carrytest.NewKeeper(), make(chan struct{}), make(chan struct{})}
	k := homeOf(t, t.TempDir(), keep)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	pl := carry.Placement{ID: 7, Pid: 65600, Home: "n1", Guest: "n2"}
	half, err := k.serve(pl, &carry.Desc{Kind: "stream", Nums: []int{0}}, r, true, false)
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- half.Close() }()
	<-keep.asked
	released := make(chan Result, 1)
	go func() { released <- send(k, &Op{Key: Key{7, 0}, Code: OpRelease}) }()
	s := half.(*homeHalf).s
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		begun := s.closed
		s.mu.Unlock()
		if begun {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the release never began")
		}
	}
	close(keep.go_)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if res := <-released; res.Errno != 0 {
		t.Error(res.Errno)
	}
	if names := keep.Names(); len(names) > 0 {
		t.Errorf("still kept: %q", names)
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("the pipe has a reader")
	}
}
