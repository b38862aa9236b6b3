package calls

import (
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"unum"
	"unum/sys"
)

func TestMayKill(t *testing.T) {
	target := &sys.Task{Uid: [4]uint32{1000, 1001, 1002, 1001}, Sid: 70000}
	for _, c := range []struct {
		name string
		from Sender
		sig  unix.Signal
		want bool
	}{
		{"real is target's real", Sender{Uid: 1000, Euid: 5}, unix.SIGTERM, true},
		{"effective is target's real", Sender{Uid: 5, Euid: 1000}, unix.SIGTERM, true},
		{"real is target's saved", Sender{Uid: 1002, Euid: 5}, unix.SIGTERM, true},
		{"target's effective does not count", Sender{Uid: 1001, Euid: 1001}, unix.SIGTERM, false},
		{"CAP_KILL", Sender{Uid: 5, Euid: 5, Caps: 1 << unix.CAP_KILL}, unix.SIGKILL, true},
		{"root without CAP_KILL", Sender{}, unix.SIGKILL, false},
		{"SIGCONT in the session", Sender{Uid: 5, Euid: 5, Sid: 70000}, unix.SIGCONT, true},
		{"SIGCONT elsewhere", Sender{Uid: 5, Euid: 5, Sid: 70001}, unix.SIGCONT, false},
		{"SIGTERM in the session", Sender{Uid: 5, Euid: 5, Sid: 70000}, unix.SIGTERM, false},
	} {
		if got := c.from.mayKill(target, c.sig); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestGroupResult(t *testing.T) {
	for want, r := range map[unix.Errno]groupRes{unix.ESRCH: {}, unix.EPERM: {Found: 2}, 0: {Found: 2, Sent: 1}} {
		if got := r.errno(); got != want {
			t.Errorf("%+v: %v, want %v", r, got, want)
		}
	}
}

// The kernel's own kill is right only where it reaches all that are meant and
// nobody else.
func TestPlainGroup(t *testing.T) {
	n, a, b, s := member{role: native}, member{role: away}, member{role: body}, member{role: stub}
	for _, c := range []struct {
		g    group
		sig  unix.Signal
		want bool
	}{
		{group{n, n}, unix.SIGSTOP, true},
		{group{n, a}, unix.SIGTERM, true},
		{group{n, a}, unix.SIGSTOP, false},
		{group{n, a}, unix.SIGCONT, false},
		{group{n, b}, unix.SIGTERM, false},
		{group{n, s}, unix.SIGKILL, false},
	} {
		if got := c.g.plain(c.sig); got != c.want {
			t.Errorf("%v with %v: %v, want %v", c.g, c.sig, got, c.want)
		}
	}
}

// fakeProcs is a process table for accounts.
type fakeProcs map[int][2]int // host: parent, start

func (f fakeProcs) accounts() *accounts {
	a := newAccounts(func(host int) bool { return host == 1 })
	a.look = func(host int) (int, uint64, bool) {
		p, ok := f[host]
		return p[0], uint64(p[1]), ok
	}
	a.name = func(host int) (unum.Pid, error) { return unum.Pid(host + 65536), nil }
	return a
}

// A shell (10) runs make (20), which runs two compilers elsewhere (30, 31).
func TestAccountsFollowReaping(t *testing.T) {
	procs := fakeProcs{10: {1, 1}, 20: {10, 2}, 30: {20, 3}, 31: {20, 4}}
	a := procs.accounts()
	if diff := cmp.Diff([]int{20, 10}, a.ended(30, unum.Usage{Utime: 5, MaxRSS: 100})); diff != "" {
		t.Errorf("ancestors (-want +got):\n%s", diff)
	}
	if u := a.children(20); u.Utime != 0 {
		t.Errorf("a child that is not reaped counts: %+v", u)
	}
	delete(procs, 30)
	if u := a.children(20); u.Utime != 5 {
		t.Errorf("after the first: %+v", u)
	}
	a.ended(31, unum.Usage{Utime: 7, MaxRSS: 50})
	delete(procs, 31)
	if u := a.children(10); u.Utime != 0 {
		t.Errorf("grandchildren count before make is reaped: %+v", u)
	}
	delete(procs, 20)
	if u := a.children(10); u.Utime != 12 || u.MaxRSS != 100 {
		t.Errorf("the shell's children: %+v", u)
	}
}

// A wait that is being patched sees what its child, and what that had reaped,
// used, whatever else is asked meanwhile; afterwards it is in the sum.
func TestAccountsHold(t *testing.T) {
	procs := fakeProcs{10: {1, 1}, 20: {10, 2}, 30: {20, 3}}
	a := procs.accounts()
	if a.hold(10) {
		t.Error("nothing is placed, and a wait is held")
	}
	a.ended(30, unum.Usage{Utime: 5})
	if !a.hold(10) {
		t.Fatal("a wait above a placed process is not held")
	}
	delete(procs, 30)
	delete(procs, 20)
	a.children(10)
	if u := a.of(10, 20+65536); u.Utime != 5 {
		t.Errorf("of make: %+v", u)
	}
	a.release(10)
	if u := a.children(10); u.Utime != 5 {
		t.Errorf("after the release: %+v", u)
	}
}

// A body's account goes to its home; a number that is used again has its own.
func TestAccountsTakeAndReuse(t *testing.T) {
	procs := fakeProcs{10: {1, 1}, 20: {10, 2}}
	a := procs.accounts()
	a.ended(20, unum.Usage{Stime: 3})
	delete(procs, 20)
	delete(procs, 10)
	a.children(77)
	if u := a.take(10); u.Stime != 3 {
		t.Errorf("taken: %+v", u)
	}
	if !a.empty() {
		t.Errorf("left over: %v", a.procs)
	}
	procs[10], procs[20] = [2]int{1, 8}, [2]int{10, 9}
	a.ended(20, unum.Usage{Stime: 1})
	procs[20] = [2]int{10, 11} // reaped, and its number is used again
	a.ended(20, unum.Usage{Stime: 1})
	if u := a.children(10); u.Stime != 1 {
		t.Errorf("children: %+v", u)
	}
}

func TestAccountsAreBounded(t *testing.T) {
	procs := fakeProcs{}
	a := procs.accounts()
	for i := range 3 * maxAccounts {
		procs[100+i] = [2]int{1, i}
		a.ended(100+i, unum.Usage{Utime: 1})
		delete(procs, 100+i)
	}
	if n := len(a.procs); n > maxAccounts+1 {
		t.Errorf("%d accounts are kept", n)
	}
}

func TestAddUsage(t *testing.T) {
	b := make([]byte, usageSize)
	put := func(i int, v uint64) { binary.LittleEndian.PutUint64(b[8*i:], v) }
	put(0, 1)
	put(1, 900_000)
	put(4, 500)
	put(9, 1)
	addUsage(b, unum.Usage{Utime: 200_000, Stime: 3_000_001, MaxRSS: 400, MajFlt: 2, NIvCSw: 9})
	var got [18]uint64
	for i := range got {
		got[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	want := [18]uint64{0: 2, 1: 100_000, 2: 3, 3: 1, 4: 500, 9: 3, 17: 9}
	if got != want {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}
