package deputy

import (
	"encoding/binary"
	"strconv"

	"unum"
	"unum/sys"
)

// Init turns a stub that is pid 1 of a world into its cursor: from now on it
// speaks only when rung, and every 200 ms looks where births in the PID
// namespace stand. Past the middle of the range it sets them back to its
// start, so that the range holds also while no daemon is there. lastPid is
// the number of its descriptor of ns_last_pid.
func (s *Stub) Init(r unum.PIDRange, lastPid int) error {
	// ns_last_pid holds the last number given, so the first birth is base+1;
	// base itself stays unused.
	base := strconv.Itoa(int(r.First))
	b := make([]byte, offInfo-offMode)
	put := func(off int, v uint64) { binary.LittleEndian.PutUint64(b[off-offMode:], v) }
	put(offMode, 1)
	put(offLast, uint64(lastPid))
	put(offThresh, uint64(r.First)+uint64(r.Size/2))
	put(offLen, uint64(len(base)))
	copy(b[offStr-offMode:], base)
	put(offNum, uint64(r.First))
	// A stub that waits for ever has not seen its new mode: the ring makes it
	// begin.
	defer func() {
		s.mu.Lock()
		s.ringLocked()
		s.mu.Unlock()
	}()
	return sys.WriteMem(s.HostPid, sys.Piece{Addr: dataBase + offMode, Data: b})
}
