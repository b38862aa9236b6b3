package node

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"unum/rexec"
)

// outside remembers the files that clients of the control socket have lent to
// processes of the world: the client holds the same description, and is not in
// the world. An entry stays while the daemon lives, which only costs speed; the
// next daemon finds those of the processes that it finds.
type outside struct {
	mu    sync.Mutex
	files map[rexec.FileID]bool
}

// lent says which file a client lends, if its description matters.
func lent(f *os.File) (id rexec.FileID, ok bool) {
	var st unix.Stat_t
	if f == nil || unix.Fstat(int(f.Fd()), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return id, false
	}
	return rexec.FileID{Dev: uint64(st.Dev), Ino: st.Ino}, true
}

func (o *outside) add(ids []rexec.FileID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.files == nil {
		o.files = map[rexec.FileID]bool{}
	}
	for _, id := range ids {
		o.files[id] = true
	}
}

func (o *outside) has(st *unix.Stat_t) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.files[rexec.FileID{Dev: uint64(st.Dev), Ino: st.Ino}]
}
