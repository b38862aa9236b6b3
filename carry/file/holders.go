package file

import (
	"bufio"
	"bytes"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"unum/carry"
	"unum/sys"
)

var sameDescription = sys.KcmpFile

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
	parent := parentOf(p.HostPid)
	for {
		pids, err := k.env.WorldPids()
		if err != nil {
			return false, err
		}
		pids = slices.Clone(pids)
		if i := slices.Index(pids, parent); i > 0 { // the likeliest sharer first
			pids[0], pids[i] = parent, pids[0]
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

// parentOf returns a process' parent; 0 if it cannot be told. The name in
// /proc/PID/stat may hold anything, so the field counts from its last ")".
func parentOf(pid int) int {
	b, err := sys.ReadProc("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 2 {
		return 0
	}
	parent, _ := strconv.Atoi(string(f[1]))
	return parent
}

// holds says whether process pid has descriptor num of process owner open. A
// process that ends meanwhile holds nothing.
//
// Asking for a number costs a fifth of listing the directory, so the numbers
// are tried from 0, and the directory is listed only if not as many are found
// as the process has open (the size of /proc/PID/fd, Linux 6.2; 0 before).
func holds(pid, owner, num int) bool {
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return false
	}
	if st.Size > 0 {
		found := 0
		for i := range int(st.Size) + 8 {
			fd := i
			if i == int(st.Size)+7 {
				fd = 255 // bash's own
			}
			same, err := sameDescription(owner, pid, num, fd)
			switch {
			case same:
				return true
			case err == unix.ESRCH:
				return false
			case err == nil:
				if found++; found == int(st.Size) {
					return false
				}
			}
		}
	}
	names, err := sys.ReadDirNames(dir)
	if err != nil {
		return false
	}
	for _, n := range names {
		fd, err := strconv.Atoi(n)
		if err != nil {
			continue
		}
		if same, _ := sameDescription(owner, pid, num, fd); same {
			return true
		}
	}
	return false
}

// hasLocks says whether a process holds a lock through a descriptor: fdinfo
// has a line for each (proc_pid_fdinfo(5)).
func hasLocks(pid, fd int) (bool, error) {
	b, err := sys.ReadProc("/proc/" + strconv.Itoa(pid) + "/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return false, err
	}
	return bytes.Contains(b, []byte("\nlock:")), nil
}

// hasRecordLocks says whether one of those is a POSIX lock, which belongs to
// the process and not to the description.
func hasRecordLocks(pid, fd int) (bool, error) {
	b, err := sys.ReadProc("/proc/" + strconv.Itoa(pid) + "/fdinfo/" + strconv.Itoa(fd))
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
