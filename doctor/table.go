package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"unum"
	"unum/sys"
	"unum/world/cgroup"
)

const newer = "a newer kernel is needed"

// Table is what a node needs and what it gains by, for this program.
func Table() []Check {
	return []Check{
		{"root", "", "namespaces, cgroups, tracing", true, "run it as root: sudo", root},
		{"x86-64", "", "the deputy's code", true, "there is no other port yet", processor},
		{"Linux", "6.1", "what was tested", true, newer, version},
		{"seccomp user notification, WAIT_KILLABLE_RECV", "5.19", "to be told of each exec", true, newer, sys.FeatureSeccompNotify},
		{"clone3 with set_tid", "5.5", "a process keeps its PID on another node", true, newer, sys.FeatureCloneSetTid},
		{"pidfd_getfd", "5.6", "descriptors outlive the daemon", true, newer, sys.FeaturePidfdGetfd},
		{"namespaces", "3.8", "the world", true, "a kernel with PID, mount, IPC, UTS and network namespaces is needed", sys.FeatureNamespaces},
		{"time namespaces", "5.6", "clocks agree from node to node", true, "a kernel with CONFIG_TIME_NS is needed", sys.FeatureTimeNamespace},
		{"ns_last_pid", "3.3", "PID ranges", true, "a kernel with CONFIG_CHECKPOINT_RESTORE is needed", sys.FeatureLastPid},
		{"pid_max", "", "PIDs of 64 nodes", true, "raise it: sysctl kernel.pid_max=4194304", pidMax},
		{"ptrace", "3.8", "a process becomes a deputy", true, "a kernel that lets root trace is needed", sys.FeaturePtrace},
		{"process_vm_readv", "3.2", "arguments of an exec", true, "a kernel with CONFIG_CROSS_MEMORY_ATTACH is needed", sys.FeatureProcessVM},
		{"kcmp", "3.5", "who shares an open file", true, "a kernel with CONFIG_KCMP is needed", sys.FeatureKcmp},
		{"sealed memfds", "3.17", "the deputy's program", true, newer, sys.FeatureMemfdExec},
		{"terminals", "2.6.36", "terminals of placed programs", true, newer, sys.FeatureTTY},
		{"FUSE", "5.2", "shared descriptors", true, "load the module: modprobe fuse", sys.FeatureFUSE},
		{"a root of its own", "5.8", "the nodes' mounts", true, "before the chroot, bind its directory onto itself: mount --bind DIR DIR", rootMount},
		{"cgroups", "", "a node's processes, found and capped", true, "mount cgroup2 at /sys/fs/cgroup", cgroups},
		{"room in /run", "", "keys, sockets, records", true, "make room there", room},
		{"CAP_SYS_RESOURCE", "", "hard limits above the daemon's own", false, "a lowered hard limit cannot be raised again", resource},
		{"ptrace with filters suspended", "4.3", "moving programs that have filters", false, "such programs stay where they are", sys.FeatureSuspendSeccomp},
		{"FUSE_EXPIRE_ONLY", "6.2", "caching above mount points", false, "entries above mount points get no timeout", sys.FeatureFUSEExpireOnly},
		{"TCX links", "6.6", "one network address", false, "clsact", sys.FeatureTCX},
		{"PAGEMAP_SCAN", "6.7", "moving memory while a program runs", false, "soft-dirty where configured, else stop and copy, or post-copy", sys.FeaturePagemapScan},
		{"userfaultfd", "4.3", "moving memory after a program has moved", false, "stop and copy", sys.FeatureUserfaultfd},
		{"FUSE passthrough", "6.9", "files of this node at native speed", false, "cached pages", sys.FeatureFUSEPassthrough},
		{"FUSE resend", "6.9", "file calls survive a crash of the file server", false, "interrupted file calls get EIO", sys.FeatureFUSEResend},
		{"file handles of pidfds", "6.14", "to recognise a process", false, "PID and start time", sys.FeaturePidfs},
		{"pid_max per PID namespace", "6.14", "a node's own end of PIDs", false, "raised once for the machine", sys.FeaturePidMax},
		{"PR_TIMER_CREATE_RESTORE_IDS", "6.15", "timers of moved programs", false, "create and delete up to the id", sys.FeatureTimerIDs},
	}
}

// ErrNotRoot is the commonest refusal.
var ErrNotRoot = errors.New("not root")

func root() error {
	if os.Geteuid() != 0 {
		return ErrNotRoot
	}
	return nil
}

func processor() error {
	if runtime.GOARCH != "amd64" {
		return &sys.NoFeature{Name: runtime.GOARCH + " port of unum"}
	}
	return nil
}

func version() error { return tooOld(sys.KernelVersion()) }

func tooOld(major, minor int) error {
	if major < 6 || major == 6 && minor < 1 {
		return fmt.Errorf("this is Linux %d.%d, 6.1 is the oldest that works: %w", major, minor, unum.ErrNoFeature)
	}
	return nil
}

func pidMax() error {
	const file = "/proc/sys/kernel/pid_max"
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return err
	}
	if n >= int(unum.PidLimit) || sys.FeaturePidMax() == nil {
		return nil
	}
	if err := unix.Access(file, unix.W_OK); err != nil {
		return fmt.Errorf("pid_max is %d and cannot be raised here: %w", n, err)
	}
	return nil // play raises it
}

// rootMount looks whether / is the root of a mount: that of a plain chroot is
// not, and cannot be made private.
func rootMount() error {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, "/", 0, unix.STATX_INO, &st); err != nil {
		return err
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return errors.New("/ is no mount point, as in a chroot")
	}
	return nil
}

// cgroups makes a group with a cap, and removes it.
func cgroups() error {
	g, err := cgroup.Create(fmt.Sprintf("unum-doctor-%d", os.Getpid()), 1)
	if err != nil {
		return err
	}
	return g.Remove(context.Background())
}

// room looks for 64 MiB and 1,000 files where nodes keep their state: in
// /run, and in what may be mounted at its unum or right below that.
func room() error {
	dirs := []string{"/run", "/run/unum"}
	below, _ := filepath.Glob("/run/unum/*")
	for _, dir := range append(dirs, below...) {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			if dir == "/run" {
				return err
			}
			continue // not there, which it need not be
		}
		if free := st.Bavail * uint64(st.Bsize); free < 64<<20 || st.Files > 0 && st.Ffree < 1000 {
			return fmt.Errorf("%d MiB and %d files free in %s, 64 MiB and 1000 wanted: %w", free>>20, st.Ffree, dir, unix.ENOSPC)
		}
	}
	return nil
}

// resource looks for CAP_SYS_RESOURCE in the effective set.
func resource() error {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		return err
	}
	if d[0].Effective&(1<<unix.CAP_SYS_RESOURCE) == 0 {
		return fmt.Errorf("this process has not got it: %w", unum.ErrNoFeature)
	}
	return nil
}
