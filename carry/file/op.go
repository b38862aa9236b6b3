package file

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// Key names one carried description: the placement and the lowest number it
// has in the caller.
type Key struct {
	Placement uint64
	Num       int32
}

// Code says what an Op does.
type Code uint8

const (
	OpRead     Code = iota + 1 // Count bytes; at Mode
	OpWrite                    // Data; at Mode
	OpSeek                     // set home's position to Off
	OpLseek                    // SEEK_DATA and SEEK_HOLE: Off, Flags is whence
	OpStat                     // answers a packed Stat
	OpSetattr                  // Data is a msgpack Setattr
	OpSync                     // Flags&1: data only
	OpAllocate                 // Data is a msgpack Allocate
	OpLock                     // Data is a msgpack Lock
	OpReopen                   // Data is a msgpack Reopen: a description of its own under Fh
	OpPoll                     // N is the ready mask
	OpPollWait                 // answers when Flags (a mask) is ready
	OpCancel                   // makes op Unique answer EINTR if it still waits
	OpRelease                  // Fh is closed; Fh 0 is the description itself, and everything with it
	OpUnlock                   // the lock owner Off has ended
)

// Mode says where a read or a write happens.
type Mode uint8

const (
	AtPosition Mode = iota // at home's position, whatever it is
	AfterSeek              // set home's position to Off first
	AtOffset               // pread, pwrite: home's position is left alone
)

// Op is one operation on its way to the description's home. It is encoded by
// hand: it is the path of every byte that is read or written.
type Op struct {
	Key    Key
	Code   Code
	Mode   Mode
	Unique uint64   // of the guest's mount; 0: may be executed twice
	Fh     uint64   // 0 is the carried description, others come from OpReopen
	Off    int64    //
	Count  uint32   //
	Flags  uint32   // O_APPEND and O_NONBLOCK as the guest's descriptor has them
	Acked  []uint64 // uniques whose answers have reached the program
	Data   []byte
}

// Result answers an Op.
type Result struct {
	Errno unix.Errno
	N     int64
	Data  []byte
}

const opHeader = 8 + 4 + 1 + 1 + 2 + 8 + 8 + 8 + 4 + 4

var errShort = errors.New("truncated message")

// AppendHeader appends everything but Data; Data follows it on the wire.
func (o *Op) AppendHeader(b []byte) []byte {
	le := binary.LittleEndian
	acked := o.Acked
	if len(acked) > 1<<15 {
		acked = acked[:1<<15]
	}
	b = le.AppendUint64(b, o.Key.Placement)
	b = le.AppendUint32(b, uint32(o.Key.Num))
	b = append(b, byte(o.Code), byte(o.Mode))
	b = le.AppendUint16(b, uint16(len(acked)))
	b = le.AppendUint64(b, o.Unique)
	b = le.AppendUint64(b, o.Fh)
	b = le.AppendUint64(b, uint64(o.Off))
	b = le.AppendUint32(b, o.Count)
	b = le.AppendUint32(b, o.Flags)
	for _, u := range acked {
		b = le.AppendUint64(b, u)
	}
	return b
}

// ParseOp decodes what AppendHeader and Data made. Data aliases b.
func ParseOp(b []byte) (*Op, error) {
	if len(b) < opHeader {
		return nil, errShort
	}
	le := binary.LittleEndian
	o := &Op{
		Key:  Key{le.Uint64(b), int32(le.Uint32(b[8:]))},
		Code: Code(b[12]), Mode: Mode(b[13]),
		Unique: le.Uint64(b[16:]), Fh: le.Uint64(b[24:]), Off: int64(le.Uint64(b[32:])),
		Count: le.Uint32(b[40:]), Flags: le.Uint32(b[44:]),
	}
	n := int(le.Uint16(b[14:]))
	b = b[opHeader:]
	if len(b) < 8*n {
		return nil, errShort
	}
	for i := range n {
		o.Acked = append(o.Acked, le.Uint64(b[8*i:]))
	}
	o.Data = b[8*n:]
	return o, nil
}

const resultHeader = 4 + 8

// Encode returns the result as one message.
func (r *Result) Encode() []byte {
	b := make([]byte, 0, resultHeader+len(r.Data))
	b = binary.LittleEndian.AppendUint32(b, uint32(r.Errno))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.N))
	return append(b, r.Data...)
}

// ParseResult decodes a Result. Data aliases b.
func ParseResult(b []byte) (Result, error) {
	if len(b) < resultHeader {
		return Result{}, errShort
	}
	return Result{
		Errno: unix.Errno(binary.LittleEndian.Uint32(b)),
		N:     int64(binary.LittleEndian.Uint64(b[4:])),
		Data:  b[resultHeader:],
	}, nil
}

// Cred is in whose name home does what Linux checks at the call and not at
// the open.
type Cred struct {
	Uid, Gid uint32
	Groups   []uint32
}

// Setattr is the argument of OpSetattr; Valid has FUSE's FATTR_ bits.
type Setattr struct {
	Cred
	Valid                uint32
	Size                 uint64
	Atime, Mtime         int64
	AtimeNsec, MtimeNsec uint32
	Mode                 uint32
	SetUid, SetGid       uint32
}

// Allocate is the argument of OpAllocate, fallocate(2).
type Allocate struct {
	Mode        uint32
	Off, Length int64
}

// LockVerb says what is asked of a lock.
type LockVerb uint8

const (
	LockGet LockVerb = iota
	LockSet
	LockWait
)

// Lock is the argument of OpLock. Flock is flock(2), which belongs to the
// description; the rest belongs to Owner, a number that the guest's kernel
// gives each lock owner.
type Lock struct {
	Verb       LockVerb
	Flock      bool
	Owner      uint64
	Type       int16 // F_RDLCK, F_WRLCK, F_UNLCK
	Start, End int64 // End is inclusive, as FUSE has it
	Pid        int32
}

// Reopen is the argument of OpReopen: somebody opened /proc/PID/fd/N of the
// descriptor.
type Reopen struct {
	Cred
	Flags int
}

// Stat is what OpStat answers, msgpack.
type Stat struct {
	Ino, Size, Blocks      uint64
	Atime, Mtime, Ctime    int64
	Ansec, Mnsec, Cnsec    uint32
	Mode, Nlink, Uid, Gid  uint32
	Rdev, Blksize, Padding uint32
}

// NewStat packs a stat.
func NewStat(s *unix.Stat_t) Stat {
	return Stat{
		Ino: s.Ino, Size: uint64(s.Size), Blocks: uint64(s.Blocks),
		Atime: int64(s.Atim.Sec), Mtime: int64(s.Mtim.Sec), Ctime: int64(s.Ctim.Sec),
		Ansec: uint32(s.Atim.Nsec), Mnsec: uint32(s.Mtim.Nsec), Cnsec: uint32(s.Ctim.Nsec),
		Mode: s.Mode, Nlink: uint32(s.Nlink), Uid: s.Uid, Gid: s.Gid,
		Rdev: uint32(s.Rdev), Blksize: uint32(s.Blksize),
	}
}
