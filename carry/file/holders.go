package file

import (
	"bufio"
	"bytes"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"unum/carry"
	"unum/sys"
)

var sameDescription = sys.SameDescription

// alone says whether p alone holds the description fd, with no lock on it, so
// that a new description of the same file does in its place.
//
// All processes of the world are asked, deputies too: what a deputy holds is
// used by a body elsewhere. Processes born during the search are searched
// before it ends. A descriptor that is on its way through a socket is not
// seen.
func (k *Kinds) alone(p *carry.Proc, fd *carry.FD) (bool, error) {
	if locked, err := hasLocks(p.HostPid, fd.Nums[0]); err != nil || locked {
		return false, err
	}
	if k.home.holds(p.HostPid, fd.Nums[0]) {
		return false, nil
	}
	seen := map[int]bool{p.HostPid: true}
	for {
		pids, err := k.env.WorldPids()
		if err != nil {
			return false, err
		}
		fresh := false
		for _, pid := range pids {
			if seen[pid] {
				continue
			}
			seen[pid], fresh = true, true
			if holds(pid, p.HostPid, fd.Nums[0]) {
				return false, nil
			}
		}
		if !fresh {
			return true, nil
		}
	}
}

// holds says whether process pid has descriptor num of process owner open. A
// process that ends meanwhile holds nothing.
func holds(pid, owner, num int) bool {
	// Most sharers have it under the same number: parent, siblings.
	if same, err := sameDescription(owner, num, pid, num); same || err == unix.ESRCH {
		return same
	}
	dir, err := os.Open("/proc/" + strconv.Itoa(pid) + "/fd")
	if err != nil {
		return false
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, n := range names {
		fd, err := strconv.Atoi(n)
		if err != nil {
			continue
		}
		if same, _ := sameDescription(owner, num, pid, fd); same {
			return true
		}
	}
	return false
}

// hasLocks says whether a process holds a lock through a descriptor: fdinfo
// has a line for each (proc_pid_fdinfo(5)).
func hasLocks(pid, fd int) (bool, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return false, err
	}
	return bytes.Contains(b, []byte("\nlock:")), nil
}

// hasRecordLocks says whether one of those is a POSIX lock, which belongs to
// the process and not to the description.
func hasRecordLocks(pid, fd int) (bool, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return false, err
	}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		if bytes.HasPrefix(sc.Bytes(), []byte("lock:")) && bytes.Contains(sc.Bytes(), []byte(" POSIX ")) {
			return true, nil
		}
	}
	return false, nil
}
