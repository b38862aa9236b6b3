package sys

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"unum"
)

// NoFeature says that the kernel lacks something. It is an unum.ErrNoFeature.
type NoFeature struct {
	Name  string
	Since string // first Linux version that has it; "" if it depends on the build only
	Err   error  // what the kernel said
}

func (e *NoFeature) Error() string {
	s := "this kernel has no " + e.Name
	if e.Since != "" {
		s += " (Linux " + e.Since + " has)"
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *NoFeature) Unwrap() error        { return e.Err }
func (e *NoFeature) Is(target error) bool { return target == unum.ErrNoFeature }

// feature turns the answer to a probe into a result. One of absent means that
// the kernel does not know the call; a refusal is no absence and is returned as
// it is.
func feature(name, since string, err error, absent ...error) error {
	if err == nil {
		return nil
	}
	for _, a := range append(absent, unix.ENOSYS) {
		if errors.Is(err, a) {
			return &NoFeature{name, since, err}
		}
	}
	return fmt.Errorf("%s: %w", name, err)
}

// KernelVersion returns the running kernel's version, such as 6, 1.
func KernelVersion() (major, minor int) {
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	}
	return major, minor
}

// onThrowawayThread runs fn on an OS thread that ends with it, so that what fn
// does to the thread (namespaces, filters) does not stay.
func onThrowawayThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends
		done <- fn()
	}()
	return <-done
}

// FeatureCloneSetTid probes clone3 with set_tid: Linux 5.5, clone(2). A bad
// pointer is refused only by a kernel that looks at it.
func FeatureCloneSetTid() error {
	err := cloneBadSetTid()
	if err == unix.EFAULT {
		return nil
	}
	return feature("clone3 with set_tid", "5.5", err, unix.E2BIG, unix.EINVAL)
}

// FeaturePidfdGetfd probes pidfd_getfd: Linux 5.6.
func FeaturePidfdGetfd() error {
	p, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return feature("pidfd_open", "5.3", err)
	}
	defer unix.Close(p)
	fd, err := unix.PidfdGetfd(p, p, 0)
	if err == nil {
		unix.Close(fd)
	}
	return feature("pidfd_getfd", "5.6", err)
}

// FeaturePidfs probes file handles of pidfds: Linux 6.14.
func FeaturePidfs() error {
	p, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return feature("pidfd_open", "5.3", err)
	}
	defer unix.Close(p)
	_, _, err = unix.NameToHandleAt(p, "", unix.AT_EMPTY_PATH)
	return feature("file handles of pidfds", "6.14", err, unix.EOPNOTSUPP, unix.EINVAL)
}

// FeatureNamespaces probes the namespaces that a world is made of, by making
// them. A time namespace: Linux 5.6, time_namespaces(7).
func FeatureNamespaces() error {
	const all = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET
	err := onThrowawayThread(func() error { return unix.Unshare(all) })
	if err == nil {
		return nil
	}
	for _, n := range []struct {
		name string
		flag int
	}{{"mount", unix.CLONE_NEWNS}, {"PID", unix.CLONE_NEWPID}, {"IPC", unix.CLONE_NEWIPC},
		{"UTS", unix.CLONE_NEWUTS}, {"network", unix.CLONE_NEWNET}} {
		if e := onThrowawayThread(func() error { return unix.Unshare(n.flag) }); e != nil {
			return feature(n.name+" namespaces", "", e, unix.EINVAL)
		}
	}
	return feature("namespaces", "", err, unix.EINVAL)
}

// FeatureTimeNamespace probes time namespaces: Linux 5.6.
func FeatureTimeNamespace() error {
	err := onThrowawayThread(func() error { return unix.Unshare(unix.CLONE_NEWTIME) })
	return feature("time namespaces", "5.6", err, unix.EINVAL)
}

// FeatureLastPid probes ns_last_pid: CONFIG_CHECKPOINT_RESTORE, Linux 3.3.
func FeatureLastPid() error {
	f, err := os.OpenFile("/proc/sys/kernel/ns_last_pid", os.O_RDWR, 0)
	if err == nil {
		f.Close()
	}
	return feature("ns_last_pid (CONFIG_CHECKPOINT_RESTORE)", "3.3", err, unix.ENOENT)
}

// FeaturePidMax probes pid_max per PID namespace: Linux 6.14. There is no way
// to see it from outside of a new one, so the version decides.
func FeaturePidMax() error {
	if major, minor := KernelVersion(); major < 6 || major == 6 && minor < 14 {
		return &NoFeature{Name: "pid_max per PID namespace", Since: "6.14"}
	}
	return nil
}

// FeatureKcmp probes kcmp: CONFIG_KCMP, Linux 3.5.
func FeatureKcmp() error {
	same, err := KcmpFile(os.Getpid(), os.Getpid(), 0, 0)
	if err == nil && !same {
		err = errors.New("a descriptor differs from itself")
	}
	if errors.Is(err, unix.EBADF) { // no descriptor 0: the call is there
		return nil
	}
	return feature("kcmp (CONFIG_KCMP)", "3.5", err)
}

// FeatureSeccompNotify probes seccomp user notification with
// WAIT_KILLABLE_RECV, by installing a filter that lets everything pass on a
// thread that ends. EBUSY: this process is supervised by a listener already.
func FeatureSeccompNotify() error {
	err := onThrowawayThread(listenOnThread)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("seccomp: this process runs under another supervisor's filter already (a container, or a world): %w", err)
	}
	return feature("seccomp user notification with WAIT_KILLABLE_RECV", "5.19", err, unix.EINVAL)
}

// FeatureMemfdExec probes sealed memfds: Linux 3.17.
func FeatureMemfdExec() error {
	fd, err := unix.MemfdCreate("probe", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW)
		unix.Close(fd)
	}
	return feature("sealed memfds", "3.17", err, unix.EINVAL)
}

// FeatureTTY probes what carrying terminals leans on: packet mode and EXTPROC
// on a pty (TIOCPKT_IOCTL, Linux 2.6.36).
func FeatureTTY() error {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return feature("/dev/ptmx", "", err, unix.ENOENT, unix.ENODEV)
	}
	defer unix.Close(fd)
	err = unix.IoctlSetPointerInt(fd, unix.TIOCPKT, 1)
	if err == nil {
		var t *unix.Termios
		if t, err = unix.IoctlGetTermios(fd, unix.TCGETS); err == nil {
			t.Lflag |= unix.EXTPROC
			err = unix.IoctlSetTermios(fd, unix.TCSETS, t)
		}
	}
	return feature("packet mode of terminals", "2.6.36", err, unix.ENOTTY, unix.EINVAL)
}
