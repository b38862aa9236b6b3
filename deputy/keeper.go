package deputy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Keeper keeps descriptors in a stub, so that they outlive the daemon. Which
// number holds what stands in a directory, one file a name: the number, and
// device and inode of what was kept. The file is written before the descriptor
// is given, so a daemon that died in between left a file whose number holds
// nothing, or something else.
type Keeper struct {
	stub *Stub
	dir  string

	mu   sync.Mutex
	nums map[string]int
	used map[int]bool
	low  int // no number below is free
}

// firstKept leaves the standard numbers alone.
const firstKept = 3

// NewKeeper makes the keeper over a stub; dir is created if need be. What a
// predecessor kept is found again.
func NewKeeper(ctx context.Context, stub *Stub, dir string) (*Keeper, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	k := &Keeper{stub: stub, dir: dir, nums: map[string]int{}, used: map[int]bool{}, low: firstKept}
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range names {
		name, err := url.PathUnescape(e.Name())
		if err != nil {
			continue
		}
		if num, ok := k.recall(filepath.Join(dir, e.Name())); ok {
			k.nums[name], k.used[num] = num, true
		} else if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return nil, err
		}
	}
	// As many as the hard limit allows.
	var lim unix.Rlimit
	if err := unix.Prlimit(stub.HostPid, unix.RLIMIT_NOFILE, nil, &lim); err != nil {
		return nil, err
	}
	lim.Cur = lim.Max
	if err := unix.Prlimit(stub.HostPid, unix.RLIMIT_NOFILE, &lim, nil); err != nil {
		return nil, fmt.Errorf("limit of the keeper: %w", err)
	}
	return k, nil
}

// recall says whether a file tells the truth.
func (k *Keeper) recall(file string) (int, bool) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	var num int
	var id string
	if _, err := fmt.Sscanf(string(b), "%d %s", &num, &id); err != nil {
		return 0, false
	}
	f, err := k.stub.Getfd(num)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	is, err := identity(f)
	return num, err == nil && is == id
}

// identity is device and inode, as far as they are known here: who serves a
// kept file of a network, or of a FUSE mount, may be dead, or wait for this
// daemon (AT_STATX_DONT_SYNC, statx(2), Linux 4.11).
func identity(f *os.File) (string, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return "", err
	}
	var st unix.Statx_t
	var serr error
	if err := rc.Control(func(fd uintptr) {
		serr = unix.Statx(int(fd), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st)
	}); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x:%x", unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino), serr
}

func (k *Keeper) file(name string) string { return filepath.Join(k.dir, url.PathEscape(name)) }

// Keep stores a duplicate of f. It returns once f survives the daemon. A name
// that is kept already gets the new one.
func (k *Keeper) Keep(ctx context.Context, name string, f *os.File) error {
	id, err := identity(f)
	if err != nil {
		return fmt.Errorf("keep %s: %w", name, err)
	}
	k.mu.Lock()
	num, old := k.nums[name]
	if !old {
		for num = k.low; k.used[num]; num++ {
		}
		k.low = num + 1
		k.nums[name], k.used[num] = num, true
	}
	k.mu.Unlock()
	err = os.WriteFile(k.file(name), []byte(strconv.Itoa(num)+" "+id), 0o600)
	if err == nil {
		_, err = k.stub.Do(ctx, []Injection{{File: f, Num: num}}, nil)
	}
	if err != nil {
		k.forget(name)
		return fmt.Errorf("keep %s: %w", name, err)
	}
	return nil
}

// Take returns a fresh duplicate; fs.ErrNotExist if nothing is kept.
func (k *Keeper) Take(name string) (*os.File, error) {
	k.mu.Lock()
	num, ok := k.nums[name]
	k.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("take %s: %w", name, fs.ErrNotExist)
	}
	return k.stub.Getfd(num)
}

// Drop closes the kept duplicate. Dropping what is not kept is no error.
func (k *Keeper) Drop(ctx context.Context, name string) error {
	k.mu.Lock()
	num, ok := k.nums[name]
	delete(k.nums, name)
	k.mu.Unlock()
	if !ok {
		return nil
	}
	p := &Program{}
	p.Do(unix.SYS_CLOSE, uint64(num))
	_, err := k.stub.Run(ctx, p)
	if e := os.Remove(k.file(name)); e != nil && err == nil && !errors.Is(e, fs.ErrNotExist) {
		err = e
	}
	k.free(num)
	if err != nil {
		return fmt.Errorf("drop %s: %w", name, err)
	}
	return nil
}

func (k *Keeper) forget(name string) {
	k.mu.Lock()
	num, ok := k.nums[name]
	delete(k.nums, name)
	k.mu.Unlock()
	if ok {
		os.Remove(k.file(name))
		k.free(num)
	}
}

func (k *Keeper) free(num int) {
	k.mu.Lock()
	delete(k.used, num)
	k.low = min(k.low, num)
	k.mu.Unlock()
}
