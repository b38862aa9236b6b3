package deputy

import (
	"bytes"
	"encoding/binary"
	"sync"
	"unsafe"
)

func stub()
func stubAddr() unsafe.Pointer

// trailer marks the end of the stub's code.
var trailer = []byte("unum-end")

// code returns the stub's instructions.
func code() []byte {
	p := (*[4096]byte)(stubAddr())
	n := bytes.Index(p[:], trailer)
	if n < 0 {
		panic("deputy: the stub has no trailer; it grew past 4096 bytes")
	}
	return p[:n]
}

// ELF returns the stub as a static executable: one page of code at textBase
// and zeroed data at dataBase. The slice is shared and must not be changed.
var ELF = sync.OnceValue(func() []byte {
	const hdr = 64 + 3*56
	text := code()
	le := binary.LittleEndian
	b := make([]byte, 0, hdr+len(text))
	b = append(b, 0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = le.AppendUint16(b, 2)  // ET_EXEC
	b = le.AppendUint16(b, 62) // EM_X86_64
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, textBase+hdr)
	b = le.AppendUint64(b, 64) // program headers
	b = le.AppendUint64(b, 0)
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 3, 64, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	segment := func(kind, flags uint32, addr, file, mem uint64) {
		b = le.AppendUint32(b, kind)
		b = le.AppendUint32(b, flags)
		for _, v := range []uint64{0, addr, addr, file, mem, 0x1000} {
			b = le.AppendUint64(b, v)
		}
	}
	segment(1, 5, textBase, uint64(hdr+len(text)), uint64(hdr+len(text))) // PT_LOAD r-x
	segment(1, 6, dataBase, 0, dataSize)                                  // PT_LOAD rw-
	segment(0x6474e551, 6, 0, 0, 0)                                       // PT_GNU_STACK, not executable
	return append(b, text...)
})
