// Package deputy is the stub and its protocol.
//
// The stub is a few hundred bytes of position-independent code that runs as a
// process of the world. It stands in for a process whose body is elsewhere
// (deputy), forks bodies (agent), is the world's pid 1, holds a process-group
// id, or keeps descriptors that must outlive the daemon. All of these are the
// same loop:
//
//	hello ──▶ PRIV(reason) ◀──────────────┐
//	             │ answer                 │
//	     wait ◀──┴──▶ run                 │
//	      │            │ a table of calls │
//	      │ a signal   └─ reason "ran" ───┤
//	      └─ reason "signal" ─────────────┘
//
// PRIV is a system call that no kernel has; the world's filter turns it into a
// notification, and the daemon's answer is the command. To speak to a stub
// that waits, the daemon rings: signal 64, si_code −60. A stub holds no socket
// and is not traced; if the daemon dies it waits for the next one.
package deputy

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"unum/sys"
)

// Addresses in the stub's image; the assembly has the same numbers.
const (
	textBase  = 0x100000
	dataBase  = 0x200000
	dataSize  = 0x28000
	offRan    = 0x00
	offMode   = 0x08
	offLast   = 0x10
	offThresh = 0x18
	offLen    = 0x20
	offStr    = 0x28
	offNum    = 0x38
	offInfo   = 0x40
	offTag    = 0x100
	offCount  = 0x108
	offDone   = 0x110
	offTable  = 0x140
	entrySize = 80
	offArena  = 0x8000
	maxCalls  = (offArena - offTable) / entrySize
	arenaSize = dataSize - offArena

	// bigBase is where a program whose data does not fit the arena maps more.
	bigBase = 0x10000000
)

// Reasons and commands of PRIV.
const (
	reasonHello  = 1
	reasonSignal = 2
	reasonRan    = 3

	cmdWait = 0
	cmdRun  = 1
)

// The ring.
const (
	ringSignal = unix.Signal(64)
	ringCode   = -60
)

// notBegun stands for the number of calls done of a program that was written
// but that the stub was not told to run.
const notBegun = ^uint64(0)

// Flag qualifies one call of a program.
type Flag uint64

const (
	// Stop ends the program when the call fails.
	Stop Flag = 1
	// Ref takes the first argument from the result of an earlier call.
	Ref Flag = 2
	// Clone marks a call that returns twice; the child says hello.
	Clone Flag = 4
	// Unless ends the program when the call succeeds.
	Unless Flag = 8
)

// Program is a short table of system calls for a stub, with their data. Tag is
// the owner's, and tells a successor of the daemon what it was.
type Program struct {
	Tag   uint64
	calls []call
	arena []byte
	big   bool
}

type call struct {
	nr    uint64
	args  [6]uint64
	flags Flag
	ref   uint64
}

// Do adds a call and returns its index. A failed call is remembered in the
// result but does not end the program.
func (p *Program) Do(nr uintptr, args ...uint64) int { return p.add(0, 0, nr, args) }

// Must adds a call whose failure ends the program.
func (p *Program) Must(nr uintptr, args ...uint64) int { return p.add(Stop, 0, nr, args) }

// MustRef is Must with the first argument taken from the result of call ref.
func (p *Program) MustRef(ref int, nr uintptr, args ...uint64) int {
	return p.add(Stop|Ref, ref, nr, append([]uint64{0}, args...))
}

// DoRef is Do with the first argument taken from the result of call ref.
func (p *Program) DoRef(ref int, nr uintptr, args ...uint64) int {
	return p.add(Ref, ref, nr, append([]uint64{0}, args...))
}

// Fork adds a clone3 whose child becomes another stub.
func (p *Program) Fork(args ...uint64) int {
	return p.add(Stop|Clone, 0, unix.SYS_CLONE3, args)
}

// UnlessPending adds a call that ends the program if the signal is pending: the
// signal is taken, and told as one that reached the stub (Stub.OnSignal). It
// must be the first call, before any data.
func (p *Program) UnlessPending(sig unix.Signal) {
	info := p.Bytes(make([]byte, len(sys.Siginfo{})))
	set, now := p.Words(1<<(sig-1)), p.Words(0, 0)
	p.add(Unless, 0, unix.SYS_RT_SIGTIMEDWAIT, []uint64{set, info, now, 8})
}

func (p *Program) add(f Flag, ref int, nr uintptr, args []uint64) int {
	c := call{nr: uint64(nr), flags: f, ref: uint64(ref)}
	copy(c.args[:], args)
	p.calls = append(p.calls, c)
	return len(p.calls) - 1
}

// FirstData is where the first Bytes of a program that is not big lie.
const FirstData = dataBase + offArena

// Len is the number of calls.
func (p *Program) Len() int { return len(p.calls) }

// Big makes room for data of any size; it must be called before the first
// Bytes.
func (p *Program) Big() { p.big = true }

func (p *Program) base() uint64 {
	if p.big {
		return bigBase
	}
	return dataBase + offArena
}

// Bytes adds data and returns its address in the stub, aligned to 8.
func (p *Program) Bytes(b []byte) uint64 {
	for len(p.arena)%8 != 0 {
		p.arena = append(p.arena, 0)
	}
	at := p.base() + uint64(len(p.arena))
	p.arena = append(p.arena, b...)
	return at
}

// String adds a NUL-terminated string and returns its address.
func (p *Program) String(s string) uint64 {
	at := p.base() + uint64(len(p.arena))
	p.arena = append(p.arena, s...)
	p.arena = append(p.arena, 0)
	return at
}

// Vector adds a NULL-terminated array of strings, as execve takes them.
func (p *Program) Vector(ss []string) uint64 {
	ptrs := make([]byte, 0, 8*(len(ss)+1))
	for _, s := range ss {
		ptrs = binary.LittleEndian.AppendUint64(ptrs, p.String(s))
	}
	return p.Bytes(binary.LittleEndian.AppendUint64(ptrs, 0))
}

// Words adds an array of 64-bit words.
func (p *Program) Words(ws ...uint64) uint64 {
	b := make([]byte, 0, 8*len(ws))
	for _, w := range ws {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return p.Bytes(b)
}

// Halves adds an array of 32-bit words.
func (p *Program) Halves(ws ...uint32) uint64 {
	b := make([]byte, 0, 4*len(ws))
	for _, w := range ws {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return p.Bytes(b)
}

// fits says whether the program can be written to a stub as it is.
func (p *Program) fits() error {
	if len(p.calls) > maxCalls {
		return fmt.Errorf("deputy: program of %d calls, at most %d fit", len(p.calls), maxCalls)
	}
	if !p.big && len(p.arena) > arenaSize {
		return fmt.Errorf("deputy: program with %d bytes of data, at most %d fit", len(p.arena), arenaSize)
	}
	return nil
}

// table returns what lies at offTag.
func (p *Program) table() []byte {
	b := make([]byte, offTable-offTag, offTable-offTag+len(p.calls)*entrySize)
	binary.LittleEndian.PutUint64(b, p.Tag)
	// The stub sets it to 0 when it begins (see Stub.Last).
	binary.LittleEndian.PutUint64(b[offDone-offTag:], notBegun)
	binary.LittleEndian.PutUint64(b[offCount-offTag:], uint64(len(p.calls)))
	le := binary.LittleEndian
	for _, c := range p.calls {
		b = le.AppendUint64(b, c.nr)
		for _, a := range c.args {
			b = le.AppendUint64(b, a)
		}
		b = le.AppendUint64(b, 0)
		b = le.AppendUint64(b, uint64(c.flags))
		b = le.AppendUint64(b, c.ref)
	}
	return b
}

// Result is what a program did.
type Result struct {
	Tag  uint64
	Done int     // calls that did not end it
	Rets []int64 // of the calls that were made; a negative one is −errno

	took bool // UnlessPending has taken its signal, which lies at FirstData
}

// Err returns the errno that ended the program, and the index of the call.
func (r *Result) Err() (at int, err error) {
	if r.Done < len(r.Rets) && r.Rets[r.Done] < 0 {
		return r.Done, unix.Errno(-r.Rets[r.Done])
	}
	return 0, nil
}

func parseResult(b []byte) *Result {
	le := binary.LittleEndian
	r := &Result{Tag: le.Uint64(b), Done: int(le.Uint64(b[offDone-offTag:]))}
	n := min(int(le.Uint64(b[offCount-offTag:])), maxCalls)
	for i := 0; i < n && i <= r.Done; i++ {
		e := b[offTable-offTag+i*entrySize:]
		if len(e) < entrySize {
			break
		}
		r.Rets = append(r.Rets, int64(le.Uint64(e[56:])))
		r.took = r.took || i == 0 && Flag(le.Uint64(e[64:]))&Unless != 0 && r.Rets[0] > 0
	}
	return r
}
