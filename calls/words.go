package calls

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// putRlimit and getRlimit are struct rlimit64 in memory.
func putRlimit(l unix.Rlimit) []byte {
	b := binary.LittleEndian.AppendUint64(nil, l.Cur)
	return binary.LittleEndian.AppendUint64(b, l.Max)
}

func getRlimit(b []byte) (l unix.Rlimit, err error) {
	if len(b) != 16 {
		return l, unix.EINVAL
	}
	return unix.Rlimit{Cur: binary.LittleEndian.Uint64(b), Max: binary.LittleEndian.Uint64(b[8:])}, nil
}
