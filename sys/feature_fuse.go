package sys

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Flags of FUSE_INIT, from include/uapi/linux/fuse.h; flags2 above bit 31.
const (
	fuseHasExpireOnly = 1 << 35
	fusePassthrough   = 1 << 37
	fuseHasResend     = 1 << 39
)

// fuseOffer mounts a FUSE file system that lies nowhere and reads what the
// kernel offers in its first request.
var fuseOffer = sync.OnceValues(func() (flags uint64, err error) {
	dev, mnt, err := MountFuse("probe")
	if err != nil {
		return 0, err
	}
	defer mnt.Close()
	defer dev.Close()
	fd := int(dev.Fd())
	unix.SetNonblock(fd, true)
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for end := time.Now().Add(2 * time.Second); ; {
		n, err := unix.Poll(fds, int(time.Until(end).Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return 0, fmt.Errorf("the kernel sent no FUSE_INIT: %w", errors.Join(err, unix.ETIMEDOUT))
		}
		break
	}
	b := make([]byte, 64<<10) // less than FUSE_MIN_READ_BUFFER is refused
	n, err := unix.Read(fd, b)
	if err != nil {
		return 0, err
	}
	// fuse_in_header is 40 bytes: len, opcode, ...; then major, minor,
	// max_readahead, flags, flags2.
	const initOp = 26
	if n < 40+20 || binary.NativeEndian.Uint32(b[4:]) != initOp {
		return 0, errors.New("the kernel's first FUSE request is not FUSE_INIT")
	}
	flags = uint64(binary.NativeEndian.Uint32(b[40+12:]))
	return flags | uint64(binary.NativeEndian.Uint32(b[40+16:]))<<32, nil
})

// FeatureFUSE probes FUSE and mounts without a path (fsopen, Linux 5.2), by
// making one.
func FeatureFUSE() error {
	_, err := fuseOffer()
	return feature("FUSE (/dev/fuse)", "", err, unix.ENOENT, unix.ENODEV, unix.ENXIO)
}

func fuseFlag(flag uint64, name, since string) error {
	flags, err := fuseOffer()
	if err != nil {
		return feature("FUSE", "", err, unix.ENOENT, unix.ENODEV, unix.ENXIO)
	}
	if flags&flag == 0 {
		return &NoFeature{Name: name, Since: since}
	}
	return nil
}

// FeatureFUSEExpireOnly probes FUSE_EXPIRE_ONLY: Linux 6.2.
func FeatureFUSEExpireOnly() error { return fuseFlag(fuseHasExpireOnly, "FUSE_EXPIRE_ONLY", "6.2") }

// FeatureFUSEPassthrough probes FUSE passthrough: Linux 6.9.
func FeatureFUSEPassthrough() error { return fuseFlag(fusePassthrough, "FUSE passthrough", "6.9") }

// FeatureFUSEResend probes FUSE_NOTIFY_RESEND: Linux 6.9.
func FeatureFUSEResend() error { return fuseFlag(fuseHasResend, "FUSE resend", "6.9") }
