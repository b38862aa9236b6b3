package pipe

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"unum/carry"
	"unum/sys"
)

// watcher tells sinks that somebody has read from their pipe, or closed an end
// of it. The poller tells a writer only when a full pipe gets room. One inotify
// instance serves a node: their number is small (fs.inotify.max_user_instances).
// Pipes give these events on every kernel from 6.1 on; where a read gives none
// (splice before 6.6), the sinks' timers see it.
type watcher struct {
	f    *os.File
	done chan struct{}

	mu    sync.Mutex
	sinks map[int]*sink
}

func newWatcher() (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	w := &watcher{f: os.NewFile(uintptr(fd), "inotify"), done: make(chan struct{}), sinks: map[int]*sink{}}
	go w.run()
	return w, nil
}

// paceAfter is how long the watcher rests after events: a reader that takes a
// byte at a time then pays for few of its reads, since the kernel joins equal
// events.
const paceAfter = 100 * time.Microsecond

func (w *watcher) run() {
	defer close(w.done)
	buf := make([]byte, 64<<10)
	for {
		n, err := w.f.Read(buf)
		if err != nil {
			return
		}
		w.mu.Lock()
		hit := map[*sink]bool{}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			if s := w.sinks[int(int32(binary.NativeEndian.Uint32(b)))]; s != nil {
				hit[s] = true
			}
			b = b[unix.SizeofInotifyEvent+binary.NativeEndian.Uint32(b[12:]):]
		}
		w.mu.Unlock()
		for s := range hit {
			s.progress(false)
		}
		time.Sleep(paceAfter)
	}
}

// add watches the pipe behind f for s. -1 if it cannot be watched.
func (w *watcher) add(f *os.File, s *sink) int {
	if w == nil {
		return -1
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	wd, err := addWatch(w.f, f, unix.IN_ACCESS|unix.IN_CLOSE_NOWRITE)
	if err != nil {
		return -1
	}
	w.sinks[wd] = s
	return wd
}

func (w *watcher) remove(wd int) {
	if w == nil || wd < 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.sinks, wd)
	removeWatch(w.f, wd)
}

func (w *watcher) close() {
	if w != nil {
		w.f.Close()
		<-w.done
	}
}

// witness knows, across the death of a daemon, whether a write to a pipe was
// made. Armed, it holds a watch of the pipe that fires once; the kernel removes
// the watch within the system call that writes. Its inotify instance is kept.
type witness struct {
	mu sync.Mutex
	f  *os.File
	n  int
}

const witnessName = "pipe.witness"

func newWitness(ctx context.Context, k carry.Keeper) (*witness, error) {
	f, err := k.Take(witnessName)
	if err == nil {
		return &witness{f: f}, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	f = os.NewFile(uintptr(fd), "inotify")
	if err := k.Keep(ctx, witnessName, f); err != nil {
		f.Close()
		return nil, err
	}
	return &witness{f: f}, nil
}

// arm sets the watch for the next write to the pipe behind f.
func (w *witness) arm(f *os.File) (wd int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.n++; w.n%64 == 0 {
		w.empty()
	}
	return addWatch(w.f, f, unix.IN_MODIFY|unix.IN_ONESHOT)
}

// empty throws away the events, whose coming says nothing new.
func (w *witness) empty() {
	var buf [8192]byte
	for {
		if n, err := sys.ReadNow(w.f, buf[:]); err != nil || n < len(buf)/2 {
			return
		}
	}
}

func (w *witness) disarm(wd int) {
	if w != nil && wd >= 0 {
		removeWatch(w.f, wd)
	}
}

// armed returns the watch of the pipe behind f, -1 if it has fired or was never
// set.
func (w *witness) armed(f *os.File) (int, error) {
	if w == nil {
		return -1, nil
	}
	var st unix.Stat_t
	if err := fstat(f, &st); err != nil {
		return -1, err
	}
	info, err := fdinfo(w.f)
	if err != nil {
		return -1, err
	}
	// inotify wd:1 ino:5a10 sdev:f mask:80000002 …, proc(5)
	for sc := bufio.NewScanner(bytes.NewReader(info)); sc.Scan(); {
		var wd int
		var ino uint64
		if n, _ := fmt.Sscanf(sc.Text(), "inotify wd:%x ino:%x ", &wd, &ino); n == 2 && ino == st.Ino {
			return wd, nil
		}
	}
	return -1, nil
}

func (w *witness) close() {
	if w != nil {
		w.f.Close()
	}
}

func addWatch(inotify, f *os.File, mask uint32) (wd int, err error) {
	err = control(f, func(fd int) error {
		return control(inotify, func(in int) (err error) {
			wd, err = unix.InotifyAddWatch(in, fmt.Sprintf("/proc/self/fd/%d", fd), mask)
			return err
		})
	})
	if err != nil {
		return -1, os.NewSyscallError("inotify_add_watch", err)
	}
	return wd, nil
}

func removeWatch(inotify *os.File, wd int) {
	control(inotify, func(in int) error {
		_, err := unix.InotifyRmWatch(in, uint32(wd))
		return err
	})
}

func fstat(f *os.File, st *unix.Stat_t) error {
	return control(f, func(fd int) error { return unix.Fstat(fd, st) })
}

func fdinfo(f *os.File) (b []byte, err error) {
	err = control(f, func(fd int) (err error) {
		b, err = os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
		return err
	})
	return b, err
}

// control runs fn with the descriptor of f, which stays open meanwhile.
func control(f *os.File, fn func(fd int) error) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := rc.Control(func(fd uintptr) { err = fn(int(fd)) })
	return errors.Join(cerr, err)
}
