package sched

import (
	"path"
	"strings"
)

// Why a command stays home.
const (
	needsProc    = "reads /proc, which is each node's own for now"
	needsTrace   = "traces processes of its own node"
	needsMounts  = "works on its own node's mounts"
	needsKernel  = "works on its own node's kernel"
	needsNet     = "works on its own node's network"
	needsSocket  = "its clients look for its socket on its own node"
	needsDevices = "works on its own node's devices"
	needsDaemon  = "talks to its own node's daemon"
	needsNS      = "makes or enters namespaces of its own node"
)

// homeOnly is the table of commands that need the one /proc, or the machine
// itself, and so stay home whatever UNUM_NODE says.
var homeOnly = map[string]string{}

func init() {
	for reason, names := range map[string]string{
		needsProc: `ps top htop atop btop btm glances pgrep pkill pidof pidwait pstree pwdx pmap lsof
			fuser killall killall5 skill snice w who users last uptime free vmstat iostat mpstat pidstat
			sar slabtop tload iotop nmon dstat procinfo lslocks lsfd smem peekfd prtstat ksysguard`,
		needsTrace: `gdb gdbserver lldb lldb-server strace ltrace perf bpftrace rr uftrace dlv gcore
			eu-stack pstack py-spy rbspy trace-cmd criu reptyr crash kcov`,
		needsMounts: `mount umount findmnt mountpoint fusermount fusermount3 losetup swapon swapoff
			mount.nfs mount.fuse sshfs df lsblk fstrim e4defrag quotaon`,
		needsKernel: `modprobe insmod rmmod lsmod modinfo depmod dmesg sysctl reboot shutdown halt poweroff
			telinit init runlevel systemctl systemd-run journalctl loginctl hostnamectl timedatectl
			hwclock chronyd ntpd kexec auditctl cgexec cgcreate cgclassify irqbalance dumpe2fs`,
		needsNet: `ip ifconfig route ss netstat iptables ip6tables iptables-save iptables-restore nft
			tc ethtool bridge brctl arp conntrack tcpdump dumpcap tshark wg wg-quick iw dhclient`,
		needsDevices: `fdisk sfdisk cfdisk parted mkfs mkswap fsck e2fsck resize2fs blkid udevadm
			lspci lsusb lscpu lshw dmidecode smartctl hdparm nvme cryptsetup dmsetup lvm pvs vgs lvs mdadm`,
		needsNS: `unshare nsenter lsns chroot docker dockerd podman runc crun containerd ctr bwrap
			firejail lxc-start systemd-nspawn buildah flatpak snap`,
		needsSocket: `tmux screen dtach abduco dbus-daemon dbus-launch ssh-agent gpg-agent sshd crond
			cron atd rsyslogd udevd Xorg Xvfb`,
	} {
		for _, name := range strings.Fields(names) {
			homeOnly[name] = reason
		}
	}
}

// systemDirs are where the names of the table mean the programs of the table;
// a program of the same name elsewhere is somebody's own.
var systemDirs = map[string]bool{
	"": true, ".": true, "/bin": true, "/sbin": true, "/usr/bin": true, "/usr/sbin": true,
	"/usr/local/bin": true, "/usr/local/sbin": true, "/run/unum": true,
}

// HomeOnly says whether the program must run at home, and why. The arguments,
// argv[0] first, matter for multi-call programs and for unum itself, whose
// `run` may go anywhere.
func HomeOnly(file string, argv ...string) (reason string, ok bool) {
	base := path.Base(file)
	switch base {
	case "unum":
		if subcommand(argv) == "run" {
			return "", false
		}
		return needsDaemon, true
	case "busybox", "toybox":
		if len(argv) > 1 {
			base = argv[1]
		}
	}
	reason, ok = homeOnly[base]
	if !ok {
		return "", false
	}
	dir := ""
	if i := strings.LastIndexByte(file, '/'); i >= 0 {
		dir = path.Clean(file[:i+1])
		if dir == "." {
			return "", false // ./top
		}
	}
	if !systemDirs[dir] {
		return "", false
	}
	return base + " " + reason, true
}

// subcommand returns the first argument that is no option, or the argument of
// one.
func subcommand(argv []string) string {
	for i := 1; i < len(argv); i++ {
		a := argv[i]
		if !strings.HasPrefix(a, "-") {
			return a
		}
		if a == "--cluster" {
			i++
		}
	}
	return ""
}
