package ctl

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"unum/sys"
)

// callerOf asks the kernel who is at the other end: SO_PEERCRED and
// SO_PEERGROUPS (4.13), as they were at connect, and what /proc says of that
// process now. A process that has changed its user since is refused.
func callerOf(uc *net.UnixConn) (Caller, error) {
	rc, err := uc.SyscallConn()
	if err != nil {
		return Caller{}, err
	}
	c := Caller{CapBounding: ^uint64(0)}
	var inner error
	err = rc.Control(func(fd uintptr) {
		var u *unix.Ucred
		if u, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); inner != nil {
			return
		}
		c.Pid, c.Uid, c.Gid = int(u.Pid), u.Uid, u.Gid
		c.Groups, inner = peerGroups(int(fd))
	})
	if err == nil {
		err = inner
	}
	if err != nil {
		return Caller{}, fmt.Errorf("peer credentials: %w", err)
	}
	if c.Pid != 0 {
		if err := c.readStatus(); err != nil {
			return Caller{}, err
		}
	}
	return c, nil
}

// readStatus adds what holds the caller back.
func (c *Caller) readStatus() error {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(c.Pid) + "/status")
	if err != nil {
		return fmt.Errorf("caller %d is gone: %w", c.Pid, err)
	}
	for line := range bytes.Lines(b) {
		key, val, _ := bytes.Cut(line, []byte(":"))
		v := string(bytes.TrimSpace(val))
		switch string(key) {
		case "Uid":
			var real, eff uint32
			if _, err := fmt.Sscan(v, &real, &eff); err != nil || eff != c.Uid {
				return fmt.Errorf("caller %d has changed its user: %w", c.Pid, unix.EPERM)
			}
		case "NoNewPrivs":
			c.NoNewPrivs = v == "1"
		case "CapBnd":
			if m, err := strconv.ParseUint(v, 16, 64); err == nil {
				c.CapBounding = m
			}
		}
	}
	return nil
}

// limits clamps what a client says of its limits to what the kernel says, if
// the caller can be seen.
func (c *Caller) limits(asked []Rlimit) ([]Rlimit, error) {
	if c.Pid == 0 || c.Root() {
		return asked, nil
	}
	have, err := sys.ReadLimits(c.Pid)
	if err != nil {
		return nil, fmt.Errorf("limits of the caller: %w", err)
	}
	var out []Rlimit
	for _, r := range asked {
		if r.Resource < 0 || r.Resource >= len(have) {
			continue
		}
		r.Max = min(r.Max, have[r.Resource].Max)
		r.Soft = min(r.Soft, r.Max)
		out = append(out, r)
	}
	return out, nil
}
