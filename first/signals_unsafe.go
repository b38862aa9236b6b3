package first

import (
	"syscall"
	"unsafe"
)

// ignored has bit s-1 for every signal s that was ignored when the program
// started. Set by entry, before Go runs.
var ignored uint64

func entry()

// Exec is syscall.Exec that leaves ignored what was ignored: the runtime's
// handlers would become the default action. It returns only with an error,
// and the process is not good for anything else then but to say so.
func Exec(path string, argv, env []string) error {
	for s := uintptr(1); s <= 64; s++ {
		if ignored>>(s-1)&1 == 0 {
			continue
		}
		act := [4]uint64{1} // SIG_IGN; struct sigaction of the kernel
		syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, s, uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0)
	}
	return syscall.Exec(path, argv, env)
}
