package node

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// outside remembers the files that clients of the control socket have lent to
// processes of the world: the client holds the same description, and is not in
// the world. An entry stays while the daemon lives, which only costs speed.
type outside struct {
	mu    sync.Mutex
	files map[[2]uint64]bool
}

func (o *outside) add(f *os.File) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.files == nil {
		o.files = map[[2]uint64]bool{}
	}
	o.files[[2]uint64{uint64(st.Dev), st.Ino}] = true
}

func (o *outside) has(st *unix.Stat_t) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.files[[2]uint64{uint64(st.Dev), st.Ino}]
}
