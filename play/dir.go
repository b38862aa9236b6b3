package play

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"unum"
	"unum/world/cgroup"
)

const cgroupPrefix = "unum-play-"

func cgroupName(play string) string { return cgroupPrefix + play }

// lockBase takes the lock under which plays are made and removed. It is on
// the directory above base, which is never removed.
func lockBase(ctx context.Context, base string) (unlock func(), err error) {
	dir := filepath.Dir(base)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// claim makes the directory of a play and locks it for the life of the
// returned file. The kernel releases the lock when its process dies. Where
// /run is on a disk, the directory gets a file system in memory: daemons keep
// journals there at every placement.
func claim(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil, err
	}
	if st.Type != unix.TMPFS_MAGIC {
		if err := unix.Mount("unum", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
			return nil, fmt.Errorf("mount tmpfs on %s: %w", dir, err)
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

// running says whether somebody holds the play of that directory.
func running(dir string) bool {
	f, err := os.Open(filepath.Join(dir, "lock"))
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
}

// foreign says whether a play of that name runs whose directory is not seen
// here: in a container or a chroot with another /run. A play makes its directory
// before its group and removes it afterwards, so nothing that a killed one left
// looks like this.
func foreign(base, name string) bool {
	if _, err := os.Lstat(filepath.Join(base, name)); err == nil {
		return false
	}
	return cgroup.Open(cgroupName(name)).Populated()
}

// claims are what holds a play's name: the lock in its directory, and its group,
// which also those see who have another /run or other mounts. The kernel lets
// go of both when the play's process dies.
type claims struct{ dir, group *os.File }

func (c *claims) Close() {
	c.dir.Close()
	c.group.Close()
}

// reserve picks and claims a name, and clears what killed plays have left.
// Preconditions: the lock of the base is held.
func reserve(ctx context.Context, c *Config) (*claims, error) {
	for _, name := range names(c.base) {
		if err := sweep(ctx, c.base, name); err != nil {
			return nil, fmt.Errorf("clear what the killed play %s left: %w", name, err)
		}
	}
	if c.Name != "" {
		return take(c.base, c.Name)
	}
	for i := 1; ; i++ {
		if c.Name = "play"; i > 1 {
			c.Name += strconv.Itoa(i)
		}
		if held, err := take(c.base, c.Name); !errors.Is(err, unum.ErrExists) {
			return held, err
		}
	}
}

// take claims a name. The error wraps unum.ErrExists if a play has it.
func take(base, name string) (*claims, error) {
	dir := filepath.Join(base, name)
	if running(dir) || foreign(base, name) {
		return nil, fmt.Errorf("a play named %s is running: %w", name, unum.ErrExists)
	}
	group, err := cgroup.Claim(cgroupName(name))
	if errors.Is(err, unum.ErrExists) {
		return nil, fmt.Errorf("a play named %s is running, with another /run or other mounts: %w", name, unum.ErrExists)
	}
	if err != nil {
		return nil, err
	}
	lock, err := claim(dir)
	if err != nil {
		cgroup.Open(cgroupName(name)).Remove(context.Background())
		group.Close()
		return nil, err
	}
	return &claims{lock, group}, nil
}

// sweep removes what a killed play has left. A play that runs is let be, also
// one of a container or of other mounts, whose lock is not seen here.
func sweep(ctx context.Context, base, name string) error {
	if running(filepath.Join(base, name)) {
		return nil
	}
	group, err := cgroup.Claim(cgroupName(name))
	switch {
	case err == nil:
		defer group.Close()
	case errors.Is(err, unum.ErrExists):
		return nil
	case !errors.Is(err, unum.ErrNoFeature):
		return err
	}
	return remove(ctx, base, name)
}

// names lists the plays that have left a trace: a directory or a cgroup.
func names(base string) []string {
	var found []string
	seen := map[string]bool{}
	add := func(n string) {
		if validName.MatchString(n) && !seen[n] {
			seen[n] = true
			found = append(found, n)
		}
	}
	entries, _ := os.ReadDir(base)
	for _, e := range entries {
		add(e.Name())
	}
	if base == Base { // the cgroups of tests are not for others to judge
		for _, g := range cgroup.Below(cgroupPrefix) {
			if n := strings.TrimPrefix(g, cgroupPrefix); !strings.HasPrefix(n, "test-") && !foreign(base, n) {
				add(n)
			}
		}
	}
	return found
}

// remove kills and removes what there is of a play. Preconditions: the caller
// has claimed its group.
func remove(ctx context.Context, base, name string) error {
	g := cgroup.Open(cgroupName(name))
	if err := g.Kill(); err != nil {
		return err
	}
	if err := g.Remove(ctx); err != nil {
		return err
	}
	dir := filepath.Join(base, name)
	if err := unmountBelow(dir); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	os.Remove(base) // only if it is empty
	return nil
}

// unmountBelow takes off what is mounted below dir: RemoveAll must not go
// into another tree. What another play that clears was quicker with is gone.
func unmountBelow(dir string) error {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	for i := len(infos) - 1; i >= 0; i-- {
		err := unix.Unmount(infos[i].Mountpoint, unix.MNT_DETACH)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", infos[i].Mountpoint, err)
		}
	}
	return nil
}

func writeInfo(dir string, info *Info) error {
	b, err := json.MarshalIndent(info, "", "\t")
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, "play.json.new")
	if err := os.WriteFile(tmp, append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, "play.json"))
}

// List returns the plays that run on this machine.
func List() ([]Info, error) {
	entries, err := os.ReadDir(Base)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var infos []Info
	for _, e := range entries {
		dir := filepath.Join(Base, e.Name())
		b, err := os.ReadFile(filepath.Join(dir, "play.json"))
		if err != nil {
			continue
		}
		var info Info
		// Ordinary users cannot open the lock, but they can see the process.
		if json.Unmarshal(b, &info) == nil && unix.Kill(info.Pid, 0) != unix.ESRCH {
			infos = append(infos, info)
		}
	}
	return infos, nil
}

// Leftovers lists what exists on this machine of the named plays, or of all:
// directories, cgroups, mounts and processes. It is for tests, after Stop.
func Leftovers(plays ...string) []string {
	return leftovers(Base, plays...)
}

func leftovers(base string, plays ...string) []string {
	if len(plays) == 0 {
		plays = names(base)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	procs, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	var found []string
	for _, name := range plays {
		dir := filepath.Join(base, name)
		if _, err := os.Lstat(dir); err == nil {
			found = append(found, "directory "+dir)
		}
		for _, g := range cgroup.Below(cgroupName(name)) {
			if g == cgroupName(name) {
				found = append(found, "cgroup "+g)
			}
		}
		for line := range strings.Lines(string(mounts)) {
			if strings.Contains(line, " "+dir+" ") || strings.Contains(line, dir+"/") {
				found = append(found, "mount "+strings.TrimSpace(line))
			}
		}
		for _, p := range procs {
			pid := strings.Split(p, "/")[2]
			groups, _ := os.ReadFile(p)
			args, _ := os.ReadFile("/proc/" + pid + "/cmdline")
			if len(args) == 0 { // a zombie, which is its parent's business
				continue
			}
			if strings.Contains(string(groups), cgroupName(name)+"/") || strings.Contains(string(args), dir+"/") {
				found = append(found, fmt.Sprintf("process %s %q", pid, args))
			}
		}
	}
	return found
}
