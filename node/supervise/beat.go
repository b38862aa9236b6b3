package supervise

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Lease is how long a node may be without a registered daemon. Then it counts
// as lost: its world is killed before anybody else is told that it is dead.
const Lease = 10 * time.Second

// Beat is the file STATE/alive, through which a daemon shows its supervisor
// that it lives and is registered with the cluster. It holds CLOCK_BOOTTIME in
// nanoseconds, which runs on while the machine sleeps and which nobody sets.
type Beat struct{ f *os.File }

func beatFile(stateDir string) string { return filepath.Join(stateDir, "alive") }

// OpenBeat is for the daemon. Nothing is written yet.
func OpenBeat(stateDir string) (*Beat, error) {
	f, err := os.OpenFile(beatFile(stateDir), os.O_WRONLY|os.O_CREATE, 0o644)
	return &Beat{f}, err
}

// Touch says: registered, now. The daemon calls it every second or so while
// that is true. A node's first Touch is also what play waits for.
func (b *Beat) Touch() error {
	var buf [8]byte
	binary.LittleEndian.PutUint64(buf[:], uint64(bootTime()))
	_, err := b.f.WriteAt(buf[:], 0)
	return err
}

// Close closes the file and leaves the last beat standing.
func (b *Beat) Close() error { return b.f.Close() }

// LastBeat returns how long ago the last Touch was. ok is false if there was
// none yet.
func LastBeat(stateDir string) (age time.Duration, ok bool) {
	at, ok := lastBeat(stateDir)
	return bootTime() - at, ok
}

func lastBeat(stateDir string) (at time.Duration, ok bool) {
	b, err := os.ReadFile(beatFile(stateDir))
	if err != nil || len(b) < 8 {
		return 0, false
	}
	return time.Duration(binary.LittleEndian.Uint64(b)), true
}

func bootTime() time.Duration {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return time.Duration(ts.Nano())
}
