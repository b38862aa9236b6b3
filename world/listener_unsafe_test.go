package world

import (
	"encoding/binary"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"unum/world/worldtest"
)

// recvTid is SECCOMP_IOCTL_NOTIF_RECV; it returns the caller's thread id.
func recvTid(t *testing.T, fd int) int {
	t.Helper()
	var b [80]byte
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), 0xc0502100, uintptr(unsafe.Pointer(&b))); e != 0 {
		t.Fatal(e)
	}
	if nr := binary.LittleEndian.Uint32(b[16:]); nr != worldtest.HelloCall {
		t.Errorf("call %d was trapped", nr)
	}
	return int(binary.LittleEndian.Uint32(b[8:]))
}
