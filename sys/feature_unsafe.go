package sys

import (
	"errors"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cloneBadSetTid calls clone3 with a set_tid that cannot be read: no kernel
// makes a process of it. The struct is clone_args of include/uapi/linux/sched.h,
// of CLONE_ARGS_SIZE_VER1.
func cloneBadSetTid() error {
	args := struct {
		flags, pidfd, childTid, parentTid, exitSignal, stack, stackSize, tls, setTid, setTidSize uint64
	}{exitSignal: uint64(unix.SIGCHLD), setTid: 1, setTidSize: 1}
	_, _, e := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	return e
}

// listenOnThread installs a filter with a listener on the calling thread.
func listenOnThread() error {
	insns := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}}
	prog := unix.SockFprog{Len: uint16(len(insns)), Filter: &insns[0]}
	const waitKillable = 1 << 5 // SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	flags := uintptr(unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | waitKillable)
	fd, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(insns)
	if e != 0 {
		return e
	}
	return unix.Close(int(fd))
}

// FeatureProcessVM probes process_vm_readv: CONFIG_CROSS_MEMORY_ATTACH, Linux 3.2.
func FeatureProcessVM() error {
	var a, b [8]byte
	local := []unix.Iovec{{Base: &a[0], Len: 8}}
	remote := []unix.RemoteIovec{{Base: uintptr(unsafe.Pointer(&b[0])), Len: 8}}
	_, err := unix.ProcessVMReadv(os.Getpid(), local, remote, 0)
	return feature("process_vm_readv (CONFIG_CROSS_MEMORY_ATTACH)", "3.2", err)
}

// FeaturePtrace probes tracing of a child, ended with its tracer: Linux 3.8.
func FeaturePtrace() error {
	return feature("ptrace", "3.8", tracee(unix.PTRACE_O_EXITKILL), unix.EINVAL)
}

// FeatureSuspendSeccomp probes tracing with the tracee's filters suspended:
// Linux 4.3, CONFIG_CHECKPOINT_RESTORE. A process that runs under a filter
// itself may not (EPERM).
func FeatureSuspendSeccomp() error {
	const suspendSeccomp = 1 << 21 // PTRACE_O_SUSPEND_SECCOMP
	return feature("PTRACE_O_SUSPEND_SECCOMP", "4.3", tracee(suspendSeccomp|unix.PTRACE_O_EXITKILL), unix.EINVAL)
}

// tracee sets options on a tracee: this program, stopped before its first
// instruction.
func tracee(options int) error {
	return onThrowawayThread(func() error {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer null.Close()
		p, err := os.StartProcess("/proc/self/exe", []string{"probe"}, &os.ProcAttr{
			Files: []*os.File{null, null, null},
			Sys:   &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL},
		})
		if err != nil {
			return err
		}
		defer func() {
			p.Kill()
			p.Wait()
		}()
		var ws unix.WaitStatus
		for {
			_, err = unix.Wait4(p.Pid, &ws, unix.WALL, nil)
			if err != unix.EINTR {
				break
			}
		}
		if err != nil {
			return err
		}
		if !ws.Stopped() {
			return errors.New("ptrace: the tracee did not stop")
		}
		return unix.PtraceSetOptions(p.Pid, options)
	})
}

// FeaturePagemapScan probes PAGEMAP_SCAN: Linux 6.7.
func FeaturePagemapScan() error {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return feature("/proc/self/pagemap", "", err, unix.ENOENT)
	}
	defer f.Close()
	var arg [12]uint64             // struct pm_scan_arg of include/uapi/linux/fs.h, of no size: EINVAL
	const pagemapScan = 0xc0606610 // _IOWR('f', 16, struct pm_scan_arg)
	_, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), pagemapScan, uintptr(unsafe.Pointer(&arg)))
	if e == unix.EINVAL {
		return nil
	}
	return feature("PAGEMAP_SCAN", "6.7", e, unix.ENOTTY)
}

// FeatureUserfaultfd probes userfaultfd.
func FeatureUserfaultfd() error {
	fd, _, e := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if e != 0 {
		return feature("userfaultfd", "4.3", e)
	}
	return unix.Close(int(fd))
}

// FeatureTCX probes TCX links: Linux 6.6. An attach type that the kernel does
// not know is EINVAL, one that it knows gets as far as the bad descriptor.
func FeatureTCX() error {
	attr := struct{ target, prog, typ, flags, replace, pad uint32 }{prog: ^uint32(0), typ: 46} // BPF_TCX_INGRESS
	const progAttach = 8
	_, _, e := unix.Syscall(unix.SYS_BPF, progAttach, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if e == unix.EBADF {
		return nil
	}
	return feature("TCX links", "6.6", e, unix.EINVAL)
}

// FeatureTimerIDs probes PR_TIMER_CREATE_RESTORE_IDS: Linux 6.15.
func FeatureTimerIDs() error {
	const restoreIDs, get = 77, 2
	_, _, e := unix.Syscall6(unix.SYS_PRCTL, restoreIDs, get, 0, 0, 0, 0)
	if e == 0 {
		return nil
	}
	return feature("PR_TIMER_CREATE_RESTORE_IDS", "6.15", e, unix.EINVAL)
}
