package file

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
	"unum/carry/carrytest"
)

// homeOf is a home daemon with its predecessor's state directory and keeper.
func homeOf(t *testing.T, dir string, keep carry.Keeper) *Kinds {
	t.Helper()
	k := New(Config{Env: &carry.Env{
		Node: "n1", StateDir: dir, Keeper: keep, Handle: func(string, unum.Handler) {}, Accept: func(string, unum.Acceptor) {},
		Peer: func(unum.NodeID) (unum.Peer, error) { return nil, unum.ErrLinkLost },
	}})
	t.Cleanup(func() { k.stop() })
	return k
}

func duplicateOf(t *testing.T, f *os.File) *os.File {
	t.Helper()
	d, err := duplicate(f)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// crash sends op to a daemon that dies, for all that anybody sees, at a step.
func crash(t *testing.T, k *Kinds, key Key, op *Op, at string) {
	t.Helper()
	dead := make(chan struct{})
	s, err := k.home.await(t.Context(), key)
	if err != nil || s == nil {
		t.Fatal(s, err)
	}
	s.log.step = func(step string) {
		if step == at {
			close(dead)
			select {} // for ever: a dead daemon does nothing more
		}
	}
	go send(k, op)
	select {
	case <-dead:
	case <-time.After(5 * time.Second):
		t.Fatalf("never came to step %s", at)
	}
}

func send(k *Kinds, op *Op) Result {
	b, err := k.home.handle(context.Background(), "n2", append(op.AppendHeader(nil), op.Data...))
	if err != nil {
		return Result{Errno: unix.EIO}
	}
	r, _ := ParseResult(b)
	return r
}

// Whatever step of a read or write the home daemon dies at, the successor's
// answer is that of the one execution there was.
func TestHomeDiesInTheMiddle(t *testing.T) {
	key := Key{7, 1}
	pl := carry.Placement{ID: 7, Pid: 65600, Home: "n1", Guest: "n2"}
	desc := &carry.Desc{Kind: "shared", Nums: []int{1}}
	for _, flags := range []int{os.O_RDWR, os.O_RDWR | os.O_APPEND} {
		for _, code := range []Code{OpRead, OpWrite} {
			for _, sibling := range []bool{false, true} {
				for _, step := range []string{"begun", "moved", "done"} {
					t.Run(fmt.Sprintf("%x %d %v %s", flags, code, sibling, step), func(t *testing.T) {
						dir, keep := t.TempDir(), carrytest.NewKeeper()
						name := filepath.Join(dir, "f")
						f := mustOpen(t, name, flags|os.O_CREATE)
						f.WriteString("0123456789")
						f.Seek(2, 0)
						old := homeOf(t, dir, keep)
						if _, err := old.serve(pl, desc, duplicateOf(t, f), false, false); err != nil {
							t.Fatal(err)
						}
						op := &Op{Key: key, Code: code, Unique: 42, Off: 2, Count: 3}
						if flags&os.O_APPEND != 0 {
							op.Flags = unix.O_APPEND
						}
						if code == OpWrite {
							op.Data, op.Count = []byte("abc"), 0
						}
						crash(t, old, key, op, step)
						if sibling && code == OpWrite {
							f.WriteString("s") // somebody at home writes meanwhile
						}
						next := homeOf(t, dir, keep)
						answers := make(chan Result, 2)
						go func() { answers <- send(next, op) }() // waits for the placement
						if _, err := next.serve(pl, desc, duplicateOf(t, f), false, true); err != nil {
							t.Fatal(err)
						}
						answers <- send(next, op) // and comes twice
						for range 2 {
							res := <-answers
							if res.Errno != 0 || res.N != 3 || code == OpRead && string(res.Data) != "234" {
								t.Errorf("answer %+v %q", res, res.Data)
							}
						}
						want := "0123456789"
						rec := ""
						if code == OpWrite {
							rec = "abc"
							if sibling {
								rec = "abcs"
								if step == "begun" {
									rec = "sabc"
								}
							}
							if flags&os.O_APPEND != 0 {
								want += rec
							} else {
								want = "01" + rec + want[2+len(rec):]
							}
						}
						if b, _ := os.ReadFile(name); string(b) != want {
							t.Errorf("content %q, want %q", b, want)
						}
						if op.Code == OpRead {
							if pos, _ := f.Seek(0, 1); pos != 5 {
								t.Errorf("position %d, want 5", pos)
							}
						}
						send(next, &Op{Key: key, Code: OpRelease})
						if left := journals(dir); len(left) != 0 {
							t.Errorf("journals left: %v", left)
						}
					})
				}
			}
		}
	}
}

// The same for a pipe: no byte is lost, none comes twice, and what follows
// comes after it.
func TestHomeDiesReadingAPipe(t *testing.T) {
	key := Key{7, 0}
	pl := carry.Placement{ID: 7, Pid: 65600, Home: "n1", Guest: "n2"}
	desc := &carry.Desc{Kind: "stream", Nums: []int{0}}
	for _, step := range []string{"begun", "spliced", "moved", "stored", "done"} {
		t.Run(step, func(t *testing.T) {
			dir, keep := t.TempDir(), carrytest.NewKeeper()
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			defer w.Close()
			old := homeOf(t, dir, keep)
			if _, err := old.serve(pl, desc, duplicateOf(t, r), true, false); err != nil {
				t.Fatal(err)
			}
			w.WriteString("0123456789")
			op := &Op{Key: key, Code: OpRead, Unique: 42, Count: 4}
			crash(t, old, key, op, step)
			next := homeOf(t, dir, keep)
			if _, err := next.serve(pl, desc, duplicateOf(t, r), true, true); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if res := send(next, op); res.Errno != 0 || string(res.Data) != "0123" {
					t.Errorf("answer %+v %q", res, res.Data)
				}
			}
			if res := send(next, &Op{Key: key, Code: OpRead, Unique: 44, Count: 100, Acked: []uint64{42}}); string(res.Data) != "456789" {
				t.Errorf("then %+v %q", res, res.Data)
			}
			send(next, &Op{Key: key, Code: OpRelease})
			if left := keep.Names(); len(left) != 0 {
				t.Errorf("kept: %v", left)
			}
		})
	}
}

// What children of an ended body use survives the daemon; a description that
// was opened again and record locks do, too.
func TestSurvivors(t *testing.T) {
	dir, keep := t.TempDir(), carrytest.NewKeeper()
	pl := carry.Placement{ID: 9, Pid: 65600, Home: "n1", Guest: "n2"}
	f := mustOpen(t, filepath.Join(dir, "f"), os.O_RDWR|os.O_CREATE)
	f.WriteString("0123456789")
	old := homeOf(t, dir, keep)
	half, err := old.serve(pl, &carry.Desc{Kind: "shared", Nums: []int{1}}, duplicateOf(t, f), false, false)
	if err != nil {
		t.Fatal(err)
	}
	key := Key{9, 1}
	if res := send(old, &Op{Key: key, Code: OpReopen, Fh: 5, Data: marshal(Reopen{Flags: os.O_RDWR})}); res.Errno != 0 {
		t.Fatal(res.Errno)
	}
	if res := send(old, &Op{Key: key, Code: OpLock, Unique: 3, Data: marshal(Lock{Verb: LockSet, Owner: 77, Type: unix.F_WRLCK, End: 4})}); res.Errno != 0 {
		t.Fatal(res.Errno)
	}
	send(old, &Op{Key: key, Code: OpRead, Fh: 5, Count: 3, Unique: 1})
	if err := old.home.survive(context.Background(), half.(*homeHalf).s); err != nil {
		t.Fatal(err)
	}
	old.Close()
	f.Seek(6, 0)

	next := homeOf(t, dir, keep)
	if res := send(next, &Op{Key: key, Code: OpRead, Count: 2, Unique: 5}); string(res.Data) != "67" {
		t.Errorf("carried description: %+v %q", res, res.Data)
	}
	if res := send(next, &Op{Key: key, Code: OpRead, Fh: 5, Count: 2, Unique: 7}); string(res.Data) != "34" {
		t.Errorf("opened again: %+v %q", res, res.Data)
	}
	fl := unix.Flock_t{Type: unix.F_WRLCK, Len: 1}
	other := mustOpen(t, f.Name(), os.O_RDWR)
	if err := unix.FcntlFlock(other.Fd(), unix.F_OFD_SETLK, &fl); err != unix.EAGAIN {
		t.Errorf("the record lock is gone: %v", err)
	}
	send(next, &Op{Key: key, Code: OpRelease})
	if err := unix.FcntlFlock(other.Fd(), unix.F_OFD_SETLK, &fl); err != nil {
		t.Errorf("the record lock stays: %v", err)
	}
	if left := keep.Names(); len(left) != 0 {
		t.Errorf("kept: %v", left)
	}
}
