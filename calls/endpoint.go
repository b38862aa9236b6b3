package calls

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"unum/seccomp"
	"unum/sys"
)

// endpoint is something of which every node has its own: a port of the
// loopback, the name of a socket, a key.
type endpoint struct {
	Kind kind
	Port uint16
	Name string
	Key  int32
}

type kind int

const (
	tcp kind = iota + 1
	udp
	abstract
	pathSocket
	shm
	sem
	msg
	message
)

func (e *endpoint) String() string {
	switch e.Kind {
	case tcp:
		return fmt.Sprintf("port %d of the loopback", e.Port)
	case udp:
		return fmt.Sprintf("UDP port %d of the loopback", e.Port)
	case abstract:
		return "the abstract socket @" + e.Name
	case shm:
		return fmt.Sprintf("the shared memory of key %#x", uint32(e.Key))
	case sem:
		return fmt.Sprintf("the semaphores of key %#x", uint32(e.Key))
	case msg:
		return fmt.Sprintf("the message queue of key %#x", uint32(e.Key))
	}
	return e.Name
}

// parseAddr reads a struct sockaddr. Kind is 0 for an address that means the
// same on all nodes, or nothing.
func parseAddr(b []byte) (e endpoint) {
	if len(b) < 2 {
		return e
	}
	switch binary.LittleEndian.Uint16(b) {
	case unix.AF_INET:
		if len(b) < 8 {
			return e
		}
		a := netip.AddrFrom4([4]byte(b[4:8]))
		if a.IsLoopback() || a.IsUnspecified() {
			e = endpoint{Kind: tcp, Port: binary.BigEndian.Uint16(b[2:])}
		}
	case unix.AF_INET6:
		if len(b) < 24 {
			return e
		}
		a := netip.AddrFrom16([16]byte(b[8:24])).Unmap()
		if a.IsLoopback() || a.IsUnspecified() {
			e = endpoint{Kind: tcp, Port: binary.BigEndian.Uint16(b[2:])}
		}
	case unix.AF_UNIX:
		name := b[2:]
		if len(name) == 0 {
			return e
		}
		if name[0] == 0 {
			return endpoint{Kind: abstract, Name: string(name[1:])}
		}
		if i := bytes.IndexByte(name, 0); i >= 0 {
			name = name[:i]
		}
		e = endpoint{Kind: pathSocket, Name: string(name)}
	}
	return e
}

// datagram makes an inet endpoint UDP if the caller's socket is.
func (e *endpoint) datagram(n *seccomp.Notif) {
	if e.Kind != tcp {
		return
	}
	tgid, err := sys.Tgid(n.Tid)
	if err != nil {
		return
	}
	pidfd, err := sys.PidfdOpen(tgid)
	if err != nil {
		return
	}
	defer unix.Close(pidfd)
	f, err := sys.PidfdGetfd(pidfd, int(n.Args[0]))
	if err != nil {
		return
	}
	defer f.Close()
	if rc, err := f.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) {
			if t, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE); err == nil && t == unix.SOCK_DGRAM {
				e.Kind = udp
			}
		})
	}
}

// listens says whether this node's world has an endpoint.
func (c *Calls) listens(e *endpoint) (bool, error) {
	net := "/proc/" + strconv.Itoa(c.cfg.World.Pid1HostPid()) + "/net/"
	switch e.Kind {
	case tcp:
		return anyPort(e.Port, tcpListen, net+"tcp", net+"tcp6")
	case udp:
		return anyPort(e.Port, udpOpen, net+"udp", net+"udp6")
	case abstract:
		b, err := os.ReadFile(net + "unix")
		return hasName(b, "@"+e.Name), err
	case shm, sem, msg:
		b, err := c.ipc.read(map[kind]string{shm: "shm", sem: "sem", msg: "msg"}[e.Kind])
		return hasKey(b, e.Key), err
	}
	return false, nil
}

// States of /proc/net/tcp and udp (include/net/tcp_states.h).
const (
	tcpListen = "0A"
	udpOpen   = "07"
)

func anyPort(port uint16, state string, files ...string) (bool, error) {
	for _, f := range files {
		b, err := os.ReadFile(f)
		if os.IsNotExist(err) {
			continue // no IPv6
		}
		if err != nil {
			return false, err
		}
		if hasPort(b, port, state) {
			return true, nil
		}
	}
	return false, nil
}

// hasPort reads the text of /proc/net/tcp: "sl local rem st …".
func hasPort(text []byte, port uint16, state string) bool {
	want := fmt.Sprintf(":%04X", port)
	for line := range bytes.Lines(text) {
		f := bytes.Fields(line)
		if len(f) > 3 && bytes.HasSuffix(f[1], []byte(want)) && string(f[3]) == state {
			return true
		}
	}
	return false
}

// hasName reads the text of /proc/net/unix, whose eighth field is a name as it
// was bound; a NUL in an abstract one is shown as @.
func hasName(text []byte, name string) bool {
	name = string(bytes.ReplaceAll([]byte(name), []byte{0}, []byte{'@'}))
	for line := range bytes.Lines(text) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		f := bytes.SplitN(line, []byte{' '}, 8)
		// The inode is padded with spaces.
		if len(f) == 8 {
			rest := bytes.TrimLeft(f[7], " ")
			if i := bytes.IndexByte(rest, ' '); len(f[6]) == 0 && i >= 0 {
				rest = rest[i+1:]
			}
			if string(rest) == name {
				return true
			}
		}
	}
	return false
}

// hasKey reads the text of /proc/sysvipc/*, whose first field is the key.
func hasKey(text []byte, key int32) bool {
	want := strconv.Itoa(int(key))
	for line := range bytes.Lines(text) {
		if f := bytes.Fields(line); len(f) > 1 && string(f[0]) == want {
			return true
		}
	}
	return false
}

// ipcReader reads /proc/sysvipc of the world's IPC namespace: the file shows
// that of the thread which opens it.
type ipcReader struct{ pid1 int }

func (r *ipcReader) read(name string) ([]byte, error) {
	type result struct {
		b   []byte
		err error
	}
	ch := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and ends with the thread
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/ipc", r.pid1))
		if err != nil {
			ch <- result{nil, err}
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWIPC); err != nil {
			ch <- result{nil, err}
			return
		}
		b, err := os.ReadFile("/proc/sysvipc/" + name)
		ch <- result{b, err}
	}()
	res := <-ch
	return res.b, res.err
}
