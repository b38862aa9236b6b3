package world

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"unum"
)

// cloneArgs is struct clone_args of linux/sched.h, in its size of Linux 5.7.
type cloneArgs struct {
	flags, pidfd, childTid, parentTid, exitSignal, stack, stackSize, tls uint64
	setTid, setTidSize, cgroup                                           uint64
}

// forkExec makes a process in new namespaces (and in the cgroup of that
// directory, if >= 0) which at once executes argv. It shares no memory with the
// caller, as syscall.ForkExec's does: before 6.2 the kernel refuses that
// (EINVAL) to a caller that has unshared its time namespace.
//
// Descriptors that are not close-on-exec go along. A child that cannot exec
// writes that to the descriptor report and exits.
func forkExec(flags uint64, cgroup, report int, path string, argv, envv []string) (int, error) {
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return 0, err
	}
	av, err := syscall.SlicePtrFromStrings(argv)
	if err != nil {
		return 0, err
	}
	ev, err := syscall.SlicePtrFromStrings(envv)
	if err != nil {
		return 0, err
	}
	a := cloneArgs{flags: flags, exitSignal: uint64(unix.SIGCHLD)}
	if cgroup >= 0 {
		a.flags |= unix.CLONE_INTO_CGROUP
		a.cgroup = uint64(cgroup)
	}
	text := []byte("cannot run " + path)
	pid, errno := rawForkExec(&a, p, &av[0], &ev[0], uintptr(report), unsafe.Pointer(&text[0]), uintptr(len(text)))
	runtime.KeepAlive(text)
	if errno != 0 {
		return 0, fmt.Errorf("clone3: %w", errno)
	}
	return int(pid), nil
}

// rawForkExec: between clone3 and execve the child has one thread of a Go
// program, so it must neither allocate nor grow its stack.
//
//go:norace
//go:nosplit
func rawForkExec(a *cloneArgs, path *byte, argv, envv **byte, report uintptr, text unsafe.Pointer, n uintptr) (uintptr, syscall.Errno) {
	pid, _, e := syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(a)), unsafe.Sizeof(*a), 0)
	if e != 0 || pid != 0 {
		return pid, e
	}
	syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(argv)), uintptr(unsafe.Pointer(envv)))
	syscall.RawSyscall(unix.SYS_WRITE, report, uintptr(text), n)
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 127, 0, 0)
	}
}

// From linux/seccomp.h and linux/filter.h.
const (
	setModeFilter    = 1
	flagSpecAllow    = 1 << 2
	flagNewListener  = 1 << 3
	flagWaitKillable = 1 << 5 // 5.19
)

// sigaction is the kernel's own, without a handler.
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// becomeStub gives the thread default signal dispositions (SIGCHLD ignored)
// and an empty mask, installs the filter, moves the listener to ListenerFD,
// and executes the stub. It returns only if that fails, and then the thread
// must do nothing that the filter traps.
//
// Preconditions: the caller is on the main thread, locked, with CAP_SYS_ADMIN;
// every descriptor that must not survive is close-on-exec.
func becomeStub(filter []unix.SockFilter, stub int, argv0 string, cookie uint64) error {
	var empty byte
	argp, err := unix.BytePtrFromString(argv0)
	if err != nil {
		return err
	}
	argv := [2]*byte{argp, nil}
	var envv [1]*byte
	prog := unix.SockFprog{Len: uint16(len(filter))}
	if len(filter) > 0 {
		prog.Filter = &filter[0]
	}

	dfl, ign := sigaction{}, sigaction{handler: 1}
	for sig := uintptr(1); sig <= 64; sig++ {
		act := &dfl
		if sig == uintptr(unix.SIGCHLD) {
			act = &ign // the kernel reaps orphans
		}
		// EINVAL for SIGKILL and SIGSTOP.
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(act)), 0, 8, 0, 0)
	}
	var none uint64
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, uintptr(unix.SIG_SETMASK), uintptr(unsafe.Pointer(&none)), 0, 8, 0, 0)

	if len(filter) > 0 {
		const flags = flagSpecAllow | flagNewListener | flagWaitKillable
		fd, _, e := unix.RawSyscall(unix.SYS_SECCOMP, setModeFilter, flags, uintptr(unsafe.Pointer(&prog)))
		if e == unix.EINVAL && !flagsKnown(flags) {
			return fmt.Errorf("seccomp with a killable wait needs Linux 5.19: %w", unum.ErrNoFeature)
		}
		if e != 0 {
			return fmt.Errorf("seccomp: %w", e)
		}
		if _, _, e := unix.RawSyscall(unix.SYS_DUP3, fd, ListenerFD, 0); e != 0 {
			return fmt.Errorf("keep the listener: %w", e)
		}
	}
	_, _, e := unix.RawSyscall6(unix.SYS_EXECVEAT, uintptr(stub), uintptr(unsafe.Pointer(&empty)),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envv[0])), unix.AT_EMPTY_PATH, uintptr(cookie))
	runtime.KeepAlive(filter)
	return fmt.Errorf("execute the stub: %w", e)
}

// flagsKnown: a kernel that knows the flags stumbles over the filter only.
func flagsKnown(flags uintptr) bool {
	_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, setModeFilter, flags, 0)
	return e == unix.EFAULT
}

// From linux/nsfs.h; both since Linux 6.11.
const (
	nsGetPidFromPidns = 0x8004b706 // _IOR(0xb7, 6, int): a PID there, as it is here
	nsGetPidInPidns   = 0x8004b708 // _IOR(0xb7, 8, int): a PID here, as it is there
)

// nsPid translates pid with one of the two; ns is a /proc/PID/ns/pid.
func nsPid(ns int, req uint, pid int) (int, error) {
	r, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(ns), uintptr(req), uintptr(pid))
	if e != 0 {
		return 0, e
	}
	return int(r), nil
}
