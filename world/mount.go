package world

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mountWorld makes the world's tree and moves into it. The caller is alone in
// a new mount namespace.
//
//	/            Root with all that is mounted below, except
//	/proc        of the world's PID namespace
//	/sys         of the node's network namespace, with the cgroups of outside
//	/dev         a few devices, terminals of its own, /dev/shm, /dev/mqueue
//	/run         RunDir;  /run/unum: PubDir
func mountWorld(c *Config) error {
	unix.Umask(0)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// Old names that are needed once more, after the new tree covers them.
	exe, err := openProgram()
	if err != nil {
		return fmt.Errorf("open the program: %w", err)
	}
	defer exe.Close()
	sysMounts, err := childMounts("/sys")
	if err != nil {
		return fmt.Errorf("read mountinfo: %w", err)
	}
	root := c.Mount
	if err := bind(c.Root, root); err != nil {
		return err
	}
	for _, d := range []string{"proc", "sys", "dev", "run"} {
		if err := clearDir(filepath.Join(root, d)); err != nil {
			return err
		}
	}
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := mount("proc", root+"/proc", safe, ""); err != nil {
		return err
	}
	if err := mount("sysfs", root+"/sys", safe, ""); err != nil {
		return err
	}
	for _, m := range sysMounts {
		// Not every file system of /sys has its directory in a network
		// namespace's own sysfs.
		if err := bind(m, root+m); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	if err := mountDev(root + "/dev"); err != nil {
		return err
	}
	if err := mountRun(c, root+"/run", exe); err != nil {
		return err
	}
	if err := unix.Chdir(root); err != nil {
		return fmt.Errorf("enter %s: %w", root, err)
	}
	// pivot_root(2), NOTES: the old root ends up below the new one.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root to %s: %w", root, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	return unix.Chdir("/")
}

func mountDev(dev string) error {
	if err := mount("tmpfs", dev, unix.MS_NOSUID, "mode=755,size=64k"); err != nil {
		return err
	}
	for _, n := range []struct {
		name         string
		major, minor uint32
	}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}} {
		path := filepath.Join(dev, n.name)
		if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(n.major, n.minor))); err != nil {
			return fmt.Errorf("make device %s: %w", n.name, err)
		}
	}
	for name, to := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
		"stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(to, filepath.Join(dev, name)); err != nil {
			return err
		}
	}
	for _, m := range []struct {
		typ, dir string
		flags    uintptr
		data     string
		optional bool // not every kernel is built with it
	}{
		{"devpts", "pts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5", false},
		{"tmpfs", "shm", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777", false},
		{"mqueue", "mqueue", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "", true},
	} {
		dir := filepath.Join(dev, m.dir)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := mount(m.typ, dir, m.flags, m.data); err != nil && !(m.optional && errors.Is(err, unix.ENODEV)) {
			return err
		}
	}
	return nil
}

// openProgram opens the running program, by its path if it is still there:
// /proc/self/exe leads to a mount of the parent's namespace, which cannot be
// bound here.
func openProgram() (*os.File, error) {
	running, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	path, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return running, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return running, nil
	}
	a, err1 := running.Stat()
	b, err2 := f.Stat()
	if err1 != nil || err2 != nil || !os.SameFile(a, b) {
		f.Close()
		return running, nil
	}
	running.Close()
	return f, nil
}

// mountRun puts the cluster's /run and in it the node's /run/unum with the
// program, whose path may lie outside the tree.
func mountRun(c *Config, run string, exe *os.File) error {
	if err := bind(c.RunDir, run); err != nil {
		return err
	}
	pub := filepath.Join(run, "unum")
	if err := os.MkdirAll(pub, 0o755); err != nil {
		return err
	}
	if err := bind(c.PubDir, pub); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(pub, "node"), []byte(string(c.Node)+"\n"), 0o644); err != nil {
		return err
	}
	bin := filepath.Join(pub, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	prog := filepath.Join(bin, "unum")
	if err := os.Remove(prog); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(prog, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Mount(fmt.Sprintf("/proc/self/fd/%d", exe.Fd()), prog, "", unix.MS_BIND, "")
	if errors.Is(err, unix.EINVAL) { // the program's file was replaced meanwhile
		_, err = io.Copy(f, exe)
	}
	if err != nil {
		return fmt.Errorf("put the program at %s: %w", BinPath, err)
	}
	return nil
}

// clearDir makes an ordinary directory of dir: what is mounted there or below
// came with Root and is taken off, in this namespace only.
func clearDir(dir string) error {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return fmt.Errorf("read mountinfo: %w", err)
	}
	for _, m := range slices.Backward(infos) {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", m.Mountpoint, err)
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, to, err)
	}
	return nil
}

func mount(typ, dir string, flags uintptr, data string) error {
	if err := unix.Mount(typ, dir, typ, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", typ, dir, err)
	}
	return nil
}

// childMounts lists the mount points right below dir, none of which lies
// below another.
func childMounts(dir string) ([]string, error) {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return nil, err
	}
	var top []string
next:
	for _, m := range infos { // parents come before children
		if m.Mountpoint == dir {
			continue
		}
		for _, t := range top {
			if m.Mountpoint == t || strings.HasPrefix(m.Mountpoint, t+"/") {
				continue next
			}
		}
		top = append(top, m.Mountpoint)
	}
	return top, nil
}
