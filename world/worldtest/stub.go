// Package worldtest has a stand-in for the deputy, so that worlds can be
// tested without one.
package worldtest

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// HelloCall is a number that no system call has.
const HelloCall = 500

// Stub returns a program (ELF, x86-64) that makes HelloCall once and then
// pauses for ever.
func Stub() []byte {
	code := []byte{
		0xb8, HelloCall & 0xff, HelloCall >> 8, 0, 0, 0x0f, 0x05, // mov eax, HelloCall; syscall
		0xb8, 34, 0, 0, 0, 0x0f, 0x05, // mov eax, pause; syscall
		0xeb, 0xf7, // jmp to the last but one
	}
	const base, head = 0x400000, 64 + 56
	var b bytes.Buffer
	le := func(v any) { binary.Write(&b, binary.LittleEndian, v) }
	b.Write([]byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	le([]uint16{2, 62}) // executable, x86-64
	le(uint32(1))
	le([]uint64{base + head, 64, 0})
	le(uint32(0))
	le([]uint16{64, 56, 1, 64, 0, 0})
	le([]uint32{1, 5}) // load; read and execute
	le([]uint64{0, base, base, head + uint64(len(code)), head + uint64(len(code)), 0x1000})
	b.Write(code)
	return b.Bytes()
}

// Filter is a seccomp filter that notifies of HelloCall and lets everything
// else through.
func Filter() []unix.SockFilter {
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: HelloCall},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0x7fc00000}, // SECCOMP_RET_USER_NOTIF
		{Code: unix.BPF_RET | unix.BPF_K, K: 0x7fff0000}, // SECCOMP_RET_ALLOW
	}
}
