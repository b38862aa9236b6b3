package carrytest

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Keeper holds duplicates in this process.
type Keeper struct {
	mu   sync.Mutex
	kept map[string]int
}

// NewKeeper returns an empty one.
func NewKeeper() *Keeper { return &Keeper{kept: map[string]int{}} }

func (k *Keeper) Keep(ctx context.Context, name string, f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	nfd := -1
	cerr := rc.Control(func(fd uintptr) { nfd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3) })
	if err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if old, ok := k.kept[name]; ok {
		unix.Close(old)
	}
	k.kept[name] = nfd
	return nil
}

func (k *Keeper) Take(name string) (*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	fd, ok := k.kept[name]
	if !ok {
		return nil, fmt.Errorf("kept %q: %w", name, fs.ErrNotExist)
	}
	nfd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(nfd), name), nil
}

func (k *Keeper) Drop(ctx context.Context, name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if fd, ok := k.kept[name]; ok {
		unix.Close(fd)
		delete(k.kept, name)
	}
	return nil
}

// Names lists what is kept.
func (k *Keeper) Names() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []string
	for n := range k.kept {
		out = append(out, n)
	}
	return out
}
