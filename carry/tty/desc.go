package tty

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
	"unum/sys"
)

// Desc is a home terminal as the start request takes it to the guest.
type Desc struct {
	_msgpack struct{} `msgpack:",as_array"`

	Sid     unum.Pid // the caller's session
	Dev     uint32   // device number of the real terminal at home
	Ctty    bool     // it is the controlling terminal of that session
	Fg      bool     // the caller's group is in its foreground
	HostPid int      // of the caller, which becomes the deputy; for home only
	Root    Root     // the terminal that people type at
	Modes   Modes
	Size    Size
}

// Root is the terminal at the beginning of a chain of placements: home's own,
// unless home has it from another node.
type Root struct {
	_msgpack struct{} `msgpack:",as_array"`

	Node unum.NodeID
	Sid  unum.Pid
	Dev  uint32
}

// Modes are struct termios2 in the layout that all 64-bit architectures share.
type Modes struct {
	_msgpack struct{} `msgpack:",as_array"`

	I, O, C, L     uint32
	Line           uint8
	Cc             []byte
	Ispeed, Ospeed uint32
}

// Size is struct winsize.
type Size struct {
	_msgpack struct{} `msgpack:",as_array"`

	Row, Col, X, Y uint16
}

func (d *Desc) encode() ([]byte, error) { return msgpack.Marshal(d) }

func decodeDesc(b []byte) (*Desc, error) {
	var d Desc
	if err := msgpack.Unmarshal(b, &d); err != nil {
		return nil, fmt.Errorf("terminal's description: %w", err)
	}
	if len(d.Modes.Cc) > len(unix.Termios{}.Cc) {
		return nil, fmt.Errorf("terminal's description: %w", unix.EINVAL)
	}
	return &d, nil
}

// modesOf drops EXTPROC, which each side has for itself.
func modesOf(t *unix.Termios) Modes {
	return Modes{
		I: t.Iflag, O: t.Oflag, C: t.Cflag, L: t.Lflag &^ sys.EXTPROC, Line: t.Line,
		Cc: bytes.Clone(t.Cc[:]), Ispeed: t.Ispeed, Ospeed: t.Ospeed,
	}
}

// termios returns m with the given EXTPROC bit.
func (m *Modes) termios(extproc uint32) *unix.Termios {
	t := &unix.Termios{
		Iflag: m.I, Oflag: m.O, Cflag: m.C, Lflag: m.L&^sys.EXTPROC | extproc&sys.EXTPROC,
		Line: m.Line, Ispeed: m.Ispeed, Ospeed: m.Ospeed,
	}
	copy(t.Cc[:], m.Cc)
	return t
}

func (m *Modes) equal(o *Modes) bool {
	return m.I == o.I && m.O == o.O && m.C == o.C && m.L == o.L && m.Line == o.Line &&
		bytes.Equal(m.Cc, o.Cc) && m.Ispeed == o.Ispeed && m.Ospeed == o.Ospeed
}

func (m *Modes) canonical() bool { return m.L&unix.ICANON != 0 }

// newlines says whether every \n of a program leaves as \r\n.
func (m *Modes) newlines() bool {
	return m.O&unix.OPOST != 0 && m.O&unix.ONLCR != 0
}

func sizeOf(w *unix.Winsize) Size { return Size{Row: w.Row, Col: w.Col, X: w.Xpixel, Y: w.Ypixel} }

func (s Size) winsize() *unix.Winsize {
	return &unix.Winsize{Row: s.Row, Col: s.Col, Xpixel: s.X, Ypixel: s.Y}
}

// read fills in what an open terminal tells.
func (d *Desc) read(fd int) error {
	t, err := sys.TtyAttr(fd)
	if err != nil {
		return err
	}
	w, err := sys.TtySize(fd)
	if err != nil {
		return err
	}
	d.Modes, d.Size = modesOf(t), sizeOf(w)
	return nil
}

// trace fills in the root.
func (k *Kind) trace(d *Desc, p *carry.Proc) {
	d.Root = Root{Node: k.cfg.Node, Sid: d.Sid, Dev: d.Dev}
	if !k.Guests.has(d.Dev) {
		return
	}
	f, err := k.openPrivate(d.Dev, p.HostPid, nil)
	if err != nil {
		return
	}
	defer f.Close()
	if l := k.Guests.lineOf(f, d.Dev); l != nil {
		d.Root = l.root
	}
}

func (d *Desc) job(p *carry.Proc) error {
	j, err := sys.ReadJob(p.HostPid, nil)
	if err != nil {
		return err
	}
	t, err := sys.ReadTask(p.HostPid)
	if err != nil {
		return err
	}
	d.HostPid, d.Sid = p.HostPid, t.Sid
	d.Ctty = j.TTY != 0 && j.TTY == d.Dev
	d.Fg = d.Ctty && j.Foreground == j.Pgrp
	return nil
}

const (
	majPts  = 136 // to 143: /dev/pts
	majTty  = 4   // consoles and serial lines
	majAlt  = 5   // /dev/tty, /dev/console, /dev/ptmx
	majAcm  = 166 // other serial lines and virtual consoles
	majUSB  = 188
	majLow  = 204
	majHvc  = 229
	minPtmx = 2
)

// describeFD returns nil, nil for what is no terminal.
func (k *Kind) describeFD(p *carry.Proc, fd *carry.FD) (*Desc, error) {
	if fd.Stat.Mode&unix.S_IFMT != unix.S_IFCHR {
		return nil, nil
	}
	switch maj, min := unix.Major(uint64(fd.Stat.Rdev)), unix.Minor(uint64(fd.Stat.Rdev)); {
	case maj == majAlt && min == minPtmx:
		return nil, fmt.Errorf("the master of a pseudo-terminal: %w", unum.ErrStaysHome)
	case maj >= majPts && maj < majPts+8, maj == majTty, maj == majAlt && min < minPtmx,
		maj == majAcm, maj == majUSB, maj == majLow, maj == majHvc:
	default:
		return nil, nil
	}
	f, err := sys.PidfdGetfd(p.PidFD, fd.Nums[0])
	if err != nil {
		return nil, fmt.Errorf("pidfd_getfd: %w", err)
	}
	defer f.Close()
	d := &Desc{}
	if d.Dev, err = sys.TtyDev(rawFD(f)); err != nil {
		if errors.Is(err, unix.EIO) {
			return nil, fmt.Errorf("a terminal that has hung up: %w", unum.ErrStaysHome)
		}
		return nil, err
	}
	if err := d.read(rawFD(f)); err != nil {
		return nil, err
	}
	if err := d.job(p); err != nil {
		return nil, err
	}
	k.trace(d, p)
	return d, nil
}

// rawFD returns the number without making the descriptor blocking, as Fd does.
func rawFD(f *os.File) (n int) {
	n = -1
	if rc, err := f.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { n = int(fd) })
	}
	return n
}

// openPrivate opens the terminal that a process has, as a description of the
// daemon's own: non-blocking, never controlling. file is a descriptor of it,
// or nil. A descriptor of /dev/tty cannot be opened again by way of /proc, since
// it would name the opener's own terminal.
func (k *Kind) openPrivate(dev uint32, hostPid int, file *os.File) (*os.File, error) {
	if file != nil {
		if f, err := reopen("/proc/self/fd/"+strconv.Itoa(rawFD(file)), dev); err == nil {
			return f, nil
		}
	}
	if f, err := reopenOf(hostPid, dev); err == nil {
		return f, nil
	}
	name := fmt.Sprintf("/proc/%d/root/dev/pts/%d", hostPid, unix.Minor(uint64(dev)))
	f, err := reopen(name, dev)
	if err == nil {
		return f, nil
	}
	// The session may have its terminal from outside of the world: somebody in
	// it has it open.
	j, jerr := sys.ReadJob(hostPid, nil)
	if jerr != nil || k.cfg.WorldPids == nil {
		return nil, err
	}
	pids, werr := k.cfg.WorldPids()
	if werr != nil {
		return nil, err
	}
	for _, pid := range pids {
		if o, oerr := sys.ReadJob(pid, nil); oerr == nil && o.Session == j.Session && o.TTY == dev {
			if f, oerr := reopenOf(pid, dev); oerr == nil {
				return f, nil
			}
		}
	}
	return nil, err
}

// reopenOf opens the terminal through some descriptor of the process.
func reopenOf(pid int, dev uint32) (*os.File, error) {
	dir := "/proc/" + strconv.Itoa(pid) + "/fd/"
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	names, err := d.Readdirnames(-1)
	d.Close()
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		// The link first: a stat may ask the file's server.
		if l, err := os.Readlink(dir + n); err != nil || !strings.HasPrefix(l, "/dev/") {
			continue
		}
		if f, err := reopen(dir+n, dev); err == nil {
			return f, nil
		}
	}
	return nil, fs.ErrNotExist
}

func reopen(path string, dev uint32) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || uint32(st.Rdev) != dev {
		return nil, &os.PathError{Op: "open", Path: path, Err: unix.ENXIO}
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}
