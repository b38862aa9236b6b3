package sys

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// ReadMem reads len(b) bytes at addr of process pid (man 2 process_vm_readv).
// It returns how many could be read; a mapping's end makes it short.
func ReadMem(pid int, addr uint64, b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	local := []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}
	remote := []unix.RemoteIovec{{Base: uintptr(addr), Len: len(b)}}
	for {
		n, err := unix.ProcessVMReadv(pid, local, remote, 0)
		if err == unix.EINTR {
			continue
		}
		return n, err
	}
}

// WriteMem writes the pieces, each at its own address, in one call.
func WriteMem(pid int, pieces ...Piece) error {
	local := make([]unix.Iovec, 0, len(pieces))
	remote := make([]unix.RemoteIovec, 0, len(pieces))
	want := 0
	for _, p := range pieces {
		if len(p.Data) == 0 {
			continue
		}
		local = append(local, unix.Iovec{Base: &p.Data[0], Len: uint64(len(p.Data))})
		remote = append(remote, unix.RemoteIovec{Base: uintptr(p.Addr), Len: len(p.Data)})
		want += len(p.Data)
	}
	if want == 0 {
		return nil
	}
	n, err := unix.ProcessVMWritev(pid, local, remote, 0)
	if err != nil {
		return err
	}
	if n != want {
		return fmt.Errorf("wrote %d of %d bytes: %w", n, want, unix.EFAULT)
	}
	return nil
}

// Piece is some bytes and where they go.
type Piece struct {
	Addr uint64
	Data []byte
}

// ReadString reads a NUL-terminated string of at most limit bytes. It reads no
// page that the string does not reach.
func ReadString(pid int, addr uint64, limit int) (string, error) {
	var out []byte
	for len(out) < limit {
		n := int(4096 - (addr+uint64(len(out)))%4096)
		n = min(n, limit-len(out))
		b := make([]byte, n)
		got, err := ReadMem(pid, addr+uint64(len(out)), b)
		if err != nil {
			return "", err
		}
		for i, c := range b[:got] {
			if c == 0 {
				return string(append(out, b[:i]...)), nil
			}
		}
		out = append(out, b[:got]...)
		if got < n {
			return "", unix.EFAULT
		}
	}
	return "", unix.ENAMETOOLONG
}
