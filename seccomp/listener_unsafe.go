package seccomp

import (
	"encoding/binary"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl numbers and structure sizes of linux/seccomp.h.
const (
	ioctlRecv     = 0xc0502100
	ioctlSend     = 0xc0182101
	ioctlValid    = 0x40082102
	ioctlAddFD    = 0x40182103
	ioctlSetFlags = 0x40082104

	notifSize   = 80
	addfdSetFD  = 1
	syncWakeUp  = 1 // 6.6; without it an answer wakes on another CPU
	slotsNumber = 4096
)

func ioctl(fd int, req uintptr, p unsafe.Pointer) (int, error) {
	for {
		r, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(p))
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return 0, e
		}
		return int(r), nil
	}
}

func setSyncWakeUp(fd int) {
	unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ioctlSetFlags, syncWakeUp)
}

func notifRecv(fd int, buf []byte) error {
	_, err := ioctl(fd, ioctlRecv, unsafe.Pointer(&buf[0]))
	return err
}

func notifValid(fd int, id uint64) bool {
	_, err := ioctl(fd, ioctlValid, unsafe.Pointer(&id))
	return err == nil
}

func notifSend(fd int, id uint64, val int64, e int32, flags uint32) error {
	resp := struct {
		id    uint64
		val   int64
		err   int32
		flags uint32
	}{id, val, e, flags}
	_, err := ioctl(fd, ioctlSend, unsafe.Pointer(&resp))
	return err
}

func notifAddFD(fd int, id uint64, src, at int, cloexec bool) (int, error) {
	a := struct {
		id    uint64
		flags uint32
		src   uint32
		dst   uint32
		dfl   uint32
	}{id: id, src: uint32(src)}
	if at >= 0 {
		a.flags, a.dst = addfdSetFD, uint32(at)
	}
	if cloexec {
		a.dfl = unix.O_CLOEXEC
	}
	return ioctl(fd, ioctlAddFD, unsafe.Pointer(&a))
}

// pollEither waits for the listener and returns its events, or 0 when wake
// became readable.
func pollEither(fd, wake int) (int16, error) {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(p, -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, err
		}
		if p[1].Revents != 0 {
			return 0, nil
		}
		return p[0].Revents, nil
	}
}

func parseNotif(b []byte) *Notif {
	le := binary.LittleEndian
	n := &Notif{
		ID:   le.Uint64(b),
		Tid:  int(le.Uint32(b[8:])),
		Nr:   le.Uint32(b[16:]),
		Arch: le.Uint32(b[20:]),
		IP:   le.Uint64(b[24:]),
	}
	for i := range n.Args {
		n.Args[i] = le.Uint64(b[32+8*i:])
	}
	return n
}

// slots is the journal: an array of struct seccomp_notif in a shared mapping.
// A slot whose id is not zero holds a call that has not been answered.
type slots struct {
	mem []byte

	mu   sync.Mutex
	free []int
	more sync.Cond
}

func openSlots(path string) (*slots, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(slotsNumber * notifSize); err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, slotsNumber*notifSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	s := &slots{mem: mem}
	s.more.L = &s.mu
	for i := slotsNumber - 1; i >= 0; i-- {
		if binary.LittleEndian.Uint64(s.at(i)) == 0 {
			s.free = append(s.free, i)
		}
	}
	return s, nil
}

func (s *slots) at(i int) []byte { return s.mem[i*notifSize : (i+1)*notifSize] }

// get returns a zeroed slot, which the kernel demands; it waits when 4096
// calls are being answered.
func (s *slots) get() (int, []byte) {
	s.mu.Lock()
	for len(s.free) == 0 {
		s.more.Wait()
	}
	i := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	s.mu.Unlock()
	return i, s.at(i)
}

func (s *slots) put(i int) {
	clear(s.at(i))
	s.mu.Lock()
	s.free = append(s.free, i)
	s.more.Signal()
	s.mu.Unlock()
}

func (s *slots) pending(l *Listener) []*Notif {
	var out []*Notif
	for i := range slotsNumber {
		if b := s.at(i); binary.LittleEndian.Uint64(b) != 0 {
			n := parseNotif(b)
			n.l, n.slot, n.Again = l, i, true
			out = append(out, n)
		}
	}
	return out
}
