package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// DieBySignal ends this process by sig as the kernel does by default, past
// Go's own handlers, which for some signals print all goroutines first. It
// returns if the signal does not end a process, or if this is pid 1.
func DieBySignal(sig unix.Signal) {
	var dfl [4]uint64 // struct sigaction of the kernel: SIG_DFL, no flags
	unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&dfl)), 0, 8, 0, 0)
	var set unix.Sigset_t
	set.Val[(sig-1)/64] = 1 << ((sig - 1) % 64)
	unix.PthreadSigmask(unix.SIG_UNBLOCK, &set, nil)
	// To this thread, so that it is delivered before tgkill returns.
	unix.Tgkill(unix.Getpid(), unix.Gettid(), sig)
}
