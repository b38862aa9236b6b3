package calls

import (
	"encoding/binary"
	"errors"
	"os"
	"path"
	"strconv"

	"golang.org/x/sys/unix"
)

// lists says whether a socket of this node's network is bound to the file that
// the path of a thread names. A path that is no socket is for the kernel to
// judge. That nodes may share a kernel does not matter: the answer is the same
// where they do not.
func lists(tid int, name string) bool {
	st, err := statIn(tid, name)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return true
	}
	inodes, err := boundInodes()
	if err != nil {
		return true // a kernel without unix_diag
	}
	return inodes[uint32(st.Ino)]
}

// statIn looks up a path as a thread sees it.
func statIn(tid int, name string) (st unix.Stat_t, err error) {
	dir := "/proc/" + strconv.Itoa(tid)
	if !path.IsAbs(name) {
		cwd, err := os.Readlink(dir + "/cwd")
		if err != nil {
			return st, err
		}
		name = cwd + "/" + name
	}
	root, err := unix.Open(dir+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return st, err
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return st, err
	}
	defer unix.Close(fd)
	return st, unix.Fstat(fd, &st)
}

// From linux/sock_diag.h and linux/unix_diag.h.
const (
	sockDiagByFamily = 20
	udiagShowVFS     = 2
	unixDiagVFS      = 1
	unixDiagMsgSize  = 16
)

// boundInodes returns the inodes of files to which sockets of the daemon's
// network namespace, which is the world's, are bound.
func boundInodes() (map[uint32]bool, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	le := binary.NativeEndian
	req := make([]byte, unix.SizeofNlMsghdr+24)
	le.PutUint32(req, uint32(len(req)))
	le.PutUint16(req[4:], sockDiagByFamily)
	le.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	body := req[unix.SizeofNlMsghdr:]
	body[0] = unix.AF_UNIX
	le.PutUint32(body[4:], ^uint32(0)) // all states
	le.PutUint32(body[12:], udiagShowVFS)
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("sendto", err)
	}
	out := map[uint32]bool{}
	buf := make([]byte, 32<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("recvfrom", err)
		}
		done, err := parseDiag(buf[:n], out)
		if done || err != nil {
			return out, err
		}
	}
}

// parseDiag reads one batch of netlink messages.
func parseDiag(b []byte, out map[uint32]bool) (done bool, err error) {
	le := binary.NativeEndian
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(le.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return false, unix.EBADMSG
		}
		switch le.Uint16(b[4:]) {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			return true, unix.ENOTSUP
		}
		attrs := b[min(size, unix.SizeofNlMsghdr+unixDiagMsgSize):size]
		for len(attrs) >= 4 {
			l := int(le.Uint16(attrs))
			if l < 4 || l > len(attrs) {
				break
			}
			if le.Uint16(attrs[2:]) == unixDiagVFS && l >= 12 {
				out[le.Uint32(attrs[4:])] = true
			}
			attrs = attrs[min(len(attrs), (l+3)&^3):]
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return false, nil
}
