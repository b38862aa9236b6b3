package unumtest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"unum"
)

// Ledger counts what ran on each node of a play, without asking the product:
// it turns on the kernel's process accounting, acct(2), in the PID namespace
// of each world. A record is written when a process ends, before its parent
// can know, with the name of the program and the PID that the world gave. A
// PID out of another node's range is a placed process.
//
// CONFIG_BSD_PROCESS_ACCT with version 3 of the records is in the kernels of
// all distributions; ErrNoAccounting where not.
type Ledger struct {
	dir string

	mu    sync.Mutex
	nodes []*account
}

// ErrNoAccounting says that the kernel cannot account processes.
var ErrNoAccounting = errors.New("the kernel has no process accounting (CONFIG_BSD_PROCESS_ACCT_V3)")

type account struct {
	name   unum.NodeID
	index  unum.NodeIndex
	file   *os.File
	off    int64
	ended  map[int]record
	bodies int // placed here
}

// record is what is used of struct acct_v3, include/uapi/linux/acct.h.
type record struct {
	pid, ppid int
	comm      string
	execed    bool
}

const recordSize = 64

// Ledger begins to count. The play must be up.
func (p *Play) Ledger() (*Ledger, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	info, err := p.Info(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "unum-ledger-")
	if err != nil {
		return nil, err
	}
	l := &Ledger{dir: dir}
	p.ledger = l
	for i, n := range info.Nodes {
		w, err := n.WorldPid()
		if err != nil {
			return nil, err
		}
		path := filepath.Join(dir, string(n.ID))
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return nil, err
		}
		if err := turnOn(w, path); err != nil {
			return nil, fmt.Errorf("%w: %v", ErrNoAccounting, err)
		}
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		l.nodes = append(l.nodes, &account{name: n.ID, index: unum.NodeIndex(i), file: f, ended: map[int]record{}})
	}
	return l, nil
}

// turnOn calls acct(2) in the PID namespace of a process. It needs a process
// born there, and perl is on every Debian.
func turnOn(pid int, path string) error {
	out, err := exec.Command("nsenter", "--target", strconv.Itoa(pid), "--pid", "--",
		"perl", "-e", "my $p = $ARGV[1]; syscall($ARGV[0] + 0, $p) == 0 or die $!", strconv.Itoa(unix.SYS_ACCT), path).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Close forgets everything. The accounting itself ends with the namespaces.
func (l *Ledger) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.nodes {
		a.file.Close()
	}
	l.nodes = nil
	return os.RemoveAll(l.dir)
}

func (l *Ledger) read() error {
	for _, a := range l.nodes {
		for {
			var b [recordSize * 256]byte
			n, err := a.file.ReadAt(b[:], a.off)
			for o := 0; o+recordSize <= n; o += recordSize {
				r := parseRecord(b[o:])
				if home, ok := unum.IndexOf(unum.Pid(r.pid)); ok && home != a.index {
					if !r.execed || strings.HasPrefix(r.comm, "unum-") {
						continue // an agent or a holder, not a body
					}
					a.bodies++
				}
				a.ended[r.pid] = r
			}
			a.off += int64(n / recordSize * recordSize)
			if err == io.EOF || n < recordSize {
				break
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func parseRecord(b []byte) record {
	const forkedOnly = 0x01 // AFORK
	u32 := func(o int) int { return int(binary.NativeEndian.Uint32(b[o:])) }
	comm, _, _ := strings.Cut(string(b[48:64]), "\x00")
	return record{pid: u32(16), ppid: u32(20), comm: comm, execed: b[0]&forkedOnly == 0}
}

// Placed is how many processes among the one with this PID and its
// descendants ran on another node than they were born on. Only ended ones
// count.
func (l *Ledger) Placed(pid int) (int, error) {
	names, err := l.Bodies(pid)
	return len(names), err
}

// Bodies names them, as "program@node".
func (l *Ledger) Bodies(pid int) ([]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.read(); err != nil {
		return nil, err
	}
	// Who is whose child, as the home of each says; a deputy's parent is the
	// real one.
	children := map[int][]int{}
	for _, a := range l.nodes {
		for p, r := range a.ended {
			if home, ok := unum.IndexOf(unum.Pid(p)); ok && home == a.index {
				children[r.ppid] = append(children[r.ppid], p)
			}
		}
	}
	var names []string
	seen := map[int]bool{}
	var walk func(p int)
	walk = func(p int) {
		if seen[p] {
			return
		}
		seen[p] = true
		for _, a := range l.nodes {
			home, ok := unum.IndexOf(unum.Pid(p))
			if r, here := a.ended[p]; here && ok && home != a.index {
				names = append(names, r.comm+"@"+string(a.name))
			}
		}
		for _, c := range children[p] {
			walk(c)
		}
	}
	walk(pid)
	return names, nil
}

// Count is how many processes whose program is called comm ran on each node;
// a placed one counts where its body was.
func (l *Ledger) Count(comm string) (map[unum.NodeID]int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.read(); err != nil {
		return nil, err
	}
	away := map[int]bool{}
	for _, a := range l.nodes {
		for p := range a.ended {
			if home, ok := unum.IndexOf(unum.Pid(p)); ok && home != a.index {
				away[p] = true
			}
		}
	}
	n := map[unum.NodeID]int{}
	for _, a := range l.nodes {
		n[a.name] += 0
		for p, r := range a.ended {
			home, _ := unum.IndexOf(unum.Pid(p))
			if r.comm == comm && r.execed && (home != a.index || !away[p]) {
				n[a.name]++
			}
		}
	}
	return n, nil
}

// Total is how many bodies each node has hosted.
func (l *Ledger) Total() (map[unum.NodeID]int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.read(); err != nil {
		return nil, err
	}
	n := map[unum.NodeID]int{}
	for _, a := range l.nodes {
		n[a.name] = a.bodies
	}
	return n, nil
}
