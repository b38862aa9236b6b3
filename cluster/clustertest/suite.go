// Package clustertest is what every cluster.Store must do, as a test suite.
package clustertest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"unum"
	"unum/cluster"
)

// Env is one empty cluster.
type Env struct {
	// Open returns the access of a node; "n1" is opened first. The suite
	// closes it.
	Open func(id unum.NodeID) cluster.Store
	TTL  time.Duration // of leases
}

// Run runs the suite. make is called for each test.
func Run(t *testing.T, make func(t *testing.T) Env) {
	for _, c := range []struct {
		name string
		f    func(*testing.T, *env)
	}{
		{"Register", testRegister},
		{"Restart", testRestart},
		{"States", testStates},
		{"Down", testDown},
		{"DownTooLate", testDownTooLate},
		{"LeaseRunsOut", testLeaseRunsOut},
		{"NoIndex", testNoIndex},
		{"FixedIndex", testFixedIndex},
		{"AtOnce", testAtOnce},
		{"Watch", testWatch},
		{"Keys", testKeys},
		{"Close", testClose},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := &env{T: t, Env: make(t)}
			ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
			defer stop()
			e.ctx = ctx
			e.n1, e.n2 = e.open("n1"), e.open("n2")
			c.f(t, e)
		})
	}
}

type env struct {
	*testing.T
	Env
	ctx    context.Context
	n1, n2 cluster.Store
}

func (e *env) open(id unum.NodeID) cluster.Store {
	s := e.Open(id)
	e.Cleanup(func() { s.Close() })
	return s
}

func reg(id unum.NodeID, inc unum.Incarnation) cluster.Registration {
	return cluster.Registration{ID: id, Addr: "10.0.0.1:7000/" + string(id), Incarnation: inc, Version: "v1", Voter: id == "n1"}
}

func (e *env) register(s cluster.Store, r cluster.Registration) cluster.Lease {
	e.Helper()
	l, err := s.Register(e.ctx, r)
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() { l.Close() })
	return l
}

func (e *env) nodes(s cluster.Store) []unum.NodeInfo {
	e.Helper()
	n, err := s.Nodes(e.ctx)
	if err != nil {
		e.Fatal(err)
	}
	return n
}

func (e *env) lost(l cluster.Lease) error {
	e.Helper()
	select {
	case <-l.Lost():
		return l.Err()
	case <-e.ctx.Done():
		e.Fatal("the lease is not lost")
		return nil
	}
}

func (e *env) held(l cluster.Lease) {
	e.Helper()
	select {
	case <-l.Lost():
		e.Errorf("the lease of %s is lost: %v", l.Node().ID, l.Err())
	default:
	}
}

func (e *env) is(err, want error) {
	e.Helper()
	var u *unum.Error
	if !errors.Is(err, want) {
		e.Errorf("got %v, want %v", err, want)
	} else if want != nil && !errors.As(err, &u) {
		e.Errorf("%v is no *unum.Error", err)
	}
}

func testRegister(t *testing.T, e *env) {
	if n := e.nodes(e.n1); len(n) != 0 {
		t.Errorf("a new cluster has %v", n)
	}
	a := e.register(e.n1, reg("n1", 11))
	b := e.register(e.n2, reg("n2", 22))
	want := []unum.NodeInfo{
		{ID: "n1", Index: 0, Addr: reg("n1", 0).Addr, State: unum.Joining, Epoch: 1, Incarnation: 11, Version: "v1", Voter: true},
		{ID: "n2", Index: 1, Addr: reg("n2", 0).Addr, State: unum.Joining, Epoch: 1, Incarnation: 22, Version: "v1"},
	}
	for _, s := range []cluster.Store{e.n1, e.n2} {
		if n := e.nodes(s); !reflect.DeepEqual(n, want) {
			t.Errorf("got  %+v\nwant %+v", n, want)
		}
	}
	if a.Node() != want[0] || b.Node() != want[1] {
		t.Errorf("leases %+v, %+v", a.Node(), b.Node())
	}
	e.held(a)
	other := reg("n1", 33)
	other.Addr = "elsewhere:1"
	_, err := e.n2.Register(e.ctx, other)
	e.is(err, unum.ErrExists)
	if _, err := e.n1.Register(e.ctx, cluster.Registration{}); err == nil {
		t.Error("a node without a name was registered")
	}
	e.held(a)
}

func testRestart(t *testing.T, e *env) {
	e.register(e.n1, reg("n1", 1))
	old := e.register(e.n2, reg("n2", 1))
	e.is(e.n2.SetState(e.ctx, "n2", 1, unum.Up), nil)
	// Without a word, while the old lease runs.
	again := e.register(e.n2, reg("n2", 2))
	if n := again.Node(); n.Index != 1 || n.Epoch != 1 || n.State != unum.Up || n.Incarnation != 2 {
		t.Errorf("after a restart: %+v", n)
	}
	if err := e.lost(old); err == nil {
		t.Error("the old lease was lost without a reason")
	}
	// After a close, within the TTL.
	again.Close()
	third := e.register(e.n2, reg("n2", 3))
	if n := third.Node(); n.Index != 1 || n.Epoch != 1 || n.State != unum.Up {
		t.Errorf("after a second restart: %+v", n)
	}
	// The new lease is not the old one, which would run out now.
	time.Sleep(e.TTL + e.TTL/2)
	e.held(third)
	if n := e.nodes(e.n1); len(n) != 2 || n[1].State != unum.Up || n[1].Incarnation != 3 {
		t.Errorf("after the TTL: %+v", n)
	}
	// Another life begins, though nobody had noticed the end of the last.
	fresh := reg("n2", 4)
	fresh.Fresh = true
	if n := e.register(e.n2, fresh).Node(); n.Index != 1 || n.Epoch != 2 || n.State != unum.Joining {
		t.Errorf("fresh: %+v", n)
	}
	if err := e.lost(third); !errors.Is(err, unum.ErrStaleEpoch) {
		t.Errorf("the lease of the life before: %v", err)
	}
}

func testStates(t *testing.T, e *env) {
	e.is(e.n1.SetState(e.ctx, "n1", 1, unum.Up), unum.ErrNoNode)
	l := e.register(e.n1, reg("n1", 1))
	e.is(e.n2.SetState(e.ctx, "n1", 2, unum.Up), unum.ErrStaleEpoch)
	if err := e.n1.SetState(e.ctx, "n1", 1, unum.Down); err == nil {
		t.Error("down was set without an epoch")
	}
	for _, s := range []unum.NodeState{unum.Up, unum.Draining, unum.Up} {
		e.is(e.n2.SetState(e.ctx, "n1", 1, s), nil)
		if n := e.nodes(e.n1); n[0].State != s {
			t.Errorf("%v, want %v", n[0].State, s)
		}
		e.held(l)
	}
	e.is(e.n1.Release(e.ctx, "n1"), unum.ErrExists)
	e.is(e.n1.SetState(e.ctx, "n1", 1, unum.Left), nil)
	e.lost(l)
	if n := e.nodes(e.n1); n[0].State != unum.Left {
		t.Errorf("%v, want left", n[0].State)
	}
	// It comes again: the same index, another life.
	if n := e.register(e.n1, reg("n1", 2)).Node(); n.Index != 0 || n.Epoch != 2 || n.State != unum.Joining {
		t.Errorf("back from left: %+v", n)
	}
	e.is(e.n1.SetState(e.ctx, "n1", 2, unum.Left), nil)
	e.is(e.n1.Release(e.ctx, "n1"), nil)
	e.is(e.n1.Release(e.ctx, "n1"), nil)
	if n := e.nodes(e.n1); len(n) != 0 {
		t.Errorf("after release: %+v", n)
	}
}

func seen(id unum.NodeID, epoch unum.Epoch) unum.NodeInfo { return unum.NodeInfo{ID: id, Epoch: epoch} }

func testDown(t *testing.T, e *env) {
	e.register(e.n1, reg("n1", 1))
	l := e.register(e.n2, reg("n2", 1))
	e.is(e.n2.SetState(e.ctx, "n2", 1, unum.Up), nil)
	_, err := e.n1.DeclareDown(e.ctx, seen("n3", 1))
	e.is(err, unum.ErrNoNode)
	for range 2 { // by two observers
		epoch, err := e.n1.DeclareDown(e.ctx, seen("n2", 1))
		if e.is(err, nil); epoch != 2 {
			t.Errorf("epoch %d, want 2", epoch)
		}
	}
	if err := e.lost(l); !errors.Is(err, unum.ErrStaleEpoch) {
		t.Errorf("lost by %v", err)
	}
	if n := e.nodes(e.n1); n[1].State != unum.Down || n[1].Epoch != 2 {
		t.Errorf("after down: %+v", n[1])
	}
	e.is(e.n2.SetState(e.ctx, "n2", 1, unum.Up), unum.ErrStaleEpoch)
	e.is(e.n2.SetState(e.ctx, "n2", 2, unum.Up), unum.ErrStaleEpoch)
	again := e.register(e.n2, reg("n2", 2))
	if n := again.Node(); n.Index != 1 || n.Epoch != 2 || n.State != unum.Joining {
		t.Errorf("back from down: %+v", n)
	}
	// Who is late does not hit the new life.
	if epoch, err := e.n1.DeclareDown(e.ctx, seen("n2", 1)); err != nil || epoch != 2 {
		t.Errorf("late: %d, %v", epoch, err)
	}
	e.held(again)
	if epoch, err := e.n1.DeclareDown(e.ctx, seen("n2", 2)); err != nil || epoch != 3 {
		t.Errorf("again: %d, %v", epoch, err)
	}
	_, err = e.n1.DeclareDown(e.ctx, seen("n2", 1))
	e.is(err, unum.ErrStaleEpoch)
	e.is(e.n1.Release(e.ctx, "n2"), nil)
	if n := e.register(e.n2, reg("n2", 9)).Node(); n.Index != 1 {
		t.Errorf("after release: %+v", n)
	}
}

// Who declares down what has changed since it was seen does no harm.
func testDownTooLate(t *testing.T, e *env) {
	e.register(e.n1, reg("n1", 1))
	e.register(e.n2, reg("n2", 1))
	was := e.nodes(e.n1)[1]
	// Its daemon is back.
	l := e.register(e.n2, reg("n2", 2))
	_, err := e.n1.DeclareDown(e.ctx, was)
	e.is(err, unum.ErrStaleEpoch)
	// Its lease had run out.
	was = e.nodes(e.n1)[1]
	was.State = unum.Suspect
	_, err = e.n1.DeclareDown(e.ctx, was)
	e.is(err, unum.ErrStaleEpoch)
	e.held(l)
	was.State = unum.Up
	if epoch, err := e.n1.DeclareDown(e.ctx, was); err != nil || epoch != 2 {
		t.Errorf("as seen: %d, %v", epoch, err)
	}
}

func testLeaseRunsOut(t *testing.T, e *env) {
	e.register(e.n1, reg("n1", 1))
	l := e.register(e.n2, reg("n2", 1))
	e.is(e.n2.SetState(e.ctx, "n2", 1, unum.Up), nil)
	began := time.Now()
	w, err := e.n1.Watch(e.ctx)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	for n := range w {
		if n[1].State == unum.Suspect {
			break
		}
	}
	if e.ctx.Err() != nil {
		t.Fatal("the lease does not run out")
	}
	if d := time.Since(began); d < e.TTL/2 || d > 4*e.TTL {
		t.Errorf("a lease of %v ran out after %v", e.TTL, d)
	}
	// Its index stays its own.
	if n := e.register(e.n1, reg("n3", 1)).Node(); n.Index != 2 {
		t.Errorf("the index of a silent node was given again: %+v", n)
	}
	if n := e.register(e.n2, reg("n2", 2)).Node(); n.Index != 1 || n.Epoch != 1 || n.State != unum.Up {
		t.Errorf("back: %+v", n)
	}
}

func testNoIndex(t *testing.T, e *env) {
	for i := range unum.MaxNodes {
		if n := e.register(e.n1, reg(unum.NodeID(fmt.Sprintf("n%d", i+1)), 1)).Node(); n.Index != unum.NodeIndex(i) {
			t.Fatalf("node %d: %+v", i, n)
		}
	}
	_, err := e.n2.Register(e.ctx, reg("more", 1))
	e.is(err, unum.ErrNoIndex)
	_, err = e.n2.DeclareDown(e.ctx, seen("n7", 1))
	e.is(err, nil)
	_, err = e.n2.Register(e.ctx, reg("more", 1))
	e.is(err, unum.ErrNoIndex) // held back
	e.is(e.n2.Release(e.ctx, "n7"), nil)
	if n := e.register(e.n2, reg("more", 1)).Node(); n.Index != 6 {
		t.Errorf("the released index is 6, given was %+v", n)
	}
}

func testFixedIndex(t *testing.T, e *env) {
	fixed := func(id unum.NodeID, i unum.NodeIndex) cluster.Registration {
		r := reg(id, 1)
		r.Fixed, r.Index = true, i
		return r
	}
	if n := e.register(e.n1, fixed("n3", 2)).Node(); n.Index != 2 {
		t.Errorf("asked for index 2, got %+v", n)
	}
	for id := range 2 {
		e.register(e.n1, reg(unum.NodeID(fmt.Sprintf("n%d", id+1)), 1))
	}
	if n := e.register(e.n1, reg("n4", 1)).Node(); n.Index != 3 {
		t.Errorf("the next free index is 3, given was %+v", n)
	}
	if n := e.register(e.n2, fixed("n3", 2)).Node(); n.Index != 2 {
		t.Errorf("again: %+v", n)
	}
	_, err := e.n1.Register(e.ctx, fixed("n5", 2))
	e.is(err, unum.ErrExists)
	_, err = e.n1.Register(e.ctx, fixed("n3", 7))
	e.is(err, unum.ErrExists)
	_, err = e.n1.Register(e.ctx, fixed("n5", unum.MaxNodes))
	e.is(err, unum.ErrNoIndex)
}

func testAtOnce(t *testing.T, e *env) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var got []int
	for i := range 20 {
		s := e.n1
		if i%2 == 0 {
			s = e.n2
		}
		wg.Go(func() {
			l, err := s.Register(e.ctx, reg(unum.NodeID(fmt.Sprintf("x%d", i)), 1))
			if err != nil {
				t.Error(err)
				return
			}
			defer l.Close()
			mu.Lock()
			got = append(got, int(l.Node().Index))
			mu.Unlock()
		})
	}
	wg.Wait()
	slices.Sort(got)
	for i, n := range got {
		if i != n {
			t.Fatalf("indexes %v", got)
		}
	}
}

func testWatch(t *testing.T, e *env) {
	ctx, stop := context.WithCancel(e.ctx)
	w, err := e.n2.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	until := func(what string, ok func(n []unum.NodeInfo) bool) {
		t.Helper()
		for n := range w {
			if ok(n) {
				return
			}
		}
		t.Fatalf("never seen: %s", what)
	}
	until("empty", func(n []unum.NodeInfo) bool { return len(n) == 0 })
	e.register(e.n1, reg("n1", 1))
	until("n1", func(n []unum.NodeInfo) bool { return len(n) == 1 && n[0].State == unum.Joining })
	e.register(e.n1, reg("n2", 1))
	e.is(e.n1.SetState(e.ctx, "n1", 1, unum.Up), nil)
	until("up", func(n []unum.NodeInfo) bool { return len(n) == 2 && n[0].State == unum.Up })
	if _, err := e.n1.DeclareDown(e.ctx, seen("n2", 1)); err != nil {
		t.Error(err)
	}
	until("down", func(n []unum.NodeInfo) bool { return n[1].State == unum.Down && n[1].Epoch == 2 })
	e.is(e.n1.Release(e.ctx, "n2"), nil)
	until("released", func(n []unum.NodeInfo) bool { return len(n) == 1 })
	stop()
	for range w {
	}
}

func testKeys(t *testing.T, e *env) {
	_, _, err := e.n1.Get(e.ctx, "a/b")
	e.is(err, fs.ErrNotExist)
	value := []byte("any \xff\x00 bytes")
	r1, err := e.n1.Swap(e.ctx, "a/b", 0, value)
	if e.is(err, nil); r1 == 0 {
		t.Error("revision 0")
	}
	if v, r, err := e.n2.Get(e.ctx, "a/b"); err != nil || r != r1 || string(v) != string(value) {
		t.Errorf("%q, %d, %v", v, r, err)
	}
	_, err = e.n2.Swap(e.ctx, "a/b", 0, value)
	e.is(err, cluster.ErrConflict)
	r2, err := e.n2.Swap(e.ctx, "a/b", r1, []byte{})
	if e.is(err, nil); r2 <= r1 {
		t.Errorf("revision %d after %d", r2, r1)
	}
	_, err = e.n1.Swap(e.ctx, "a/b", r1, value)
	e.is(err, cluster.ErrConflict)
	_, err = e.n1.Swap(e.ctx, "a/c", 0, []byte("c"))
	e.is(err, nil)
	_, err = e.n1.Swap(e.ctx, "b", 0, []byte("b"))
	e.is(err, nil)
	all, err := e.n2.List(e.ctx, "a/")
	if e.is(err, nil); len(all) != 2 || len(all["a/b"].Value) != 0 || all["a/b"].Revision != r2 || string(all["a/c"].Value) != "c" {
		t.Errorf("list: %v", all)
	}
	_, err = e.n1.Swap(e.ctx, "a/b", r2, nil)
	e.is(err, nil)
	_, _, err = e.n2.Get(e.ctx, "a/b")
	e.is(err, fs.ErrNotExist)
	// Of many at once, one wins.
	var wg sync.WaitGroup
	var won int
	var mu sync.Mutex
	for range 20 {
		wg.Go(func() {
			if _, err := e.n2.Swap(e.ctx, "race", 0, []byte("x")); err == nil {
				mu.Lock()
				won++
				mu.Unlock()
			}
		})
	}
	if wg.Wait(); won != 1 {
		t.Errorf("%d of 20 made the same key", won)
	}
}

func testClose(t *testing.T, e *env) {
	e.register(e.n1, reg("n1", 1))
	l := e.register(e.n2, reg("n2", 1))
	w, err := e.n2.Watch(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := e.n2.Close(); err != nil {
		t.Error(err)
	}
	if err := e.lost(l); !errors.Is(err, cluster.ErrClosed) {
		t.Errorf("lost by %v", err)
	}
	for range w {
	}
	_, err = e.n2.Nodes(e.ctx)
	e.is(err, cluster.ErrClosed)
	_, err = e.n2.Register(e.ctx, reg("n2", 2))
	e.is(err, cluster.ErrClosed)
	if n := e.nodes(e.n1); len(n) != 2 {
		t.Errorf("another's close took records: %v", n)
	}
}
