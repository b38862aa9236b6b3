package calls

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"unum"
	"unum/sys"
)

// Sender is who makes a call, as far as its rights depend on it.
type Sender struct {
	Pid, Pgid, Sid unum.Pid
	Uid, Euid      uint32
	Caps           uint64 // effective
}

func senderOf(t *sys.Task) Sender {
	return Sender{Pid: t.Pid, Pgid: t.Pgid, Sid: t.Sid, Uid: t.Uid[0], Euid: t.Uid[1], Caps: t.CapEff}
}

func (s *Sender) has(capability uint) bool { return s.Caps&(1<<capability) != 0 }

// mayKill is check_kill_permission of kernel/signal.c.
func (s *Sender) mayKill(t *sys.Task, sig unix.Signal) bool {
	for _, mine := range []uint32{s.Euid, s.Uid} {
		if mine == t.Uid[0] || mine == t.Uid[2] {
			return true
		}
	}
	return s.has(unix.CAP_KILL) || sig == unix.SIGCONT && s.Sid == t.Sid
}

// mayRenice is set_one_prio_perm of kernel/sys.c, and check_same_owner of the
// scheduler, which are the same but for the order.
func (s *Sender) mayRenice(t *sys.Task) bool {
	return s.Euid == t.Uid[0] || s.Euid == t.Uid[1] || s.has(unix.CAP_SYS_NICE)
}

// maySchedule is user_check_sched_setscheduler of kernel/sched/syscalls.c,
// without what RLIMIT_NICE and RLIMIT_RTPRIO would allow.
func (s *Sender) maySchedule(t *sys.Task, q *procReq) bool {
	if s.has(unix.CAP_SYS_NICE) {
		return true
	}
	policy, nice := t.Policy, t.Nice
	switch q.Nr {
	case unix.SYS_SCHED_SETSCHEDULER:
		policy = q.Arg &^ unix.SCHED_RESET_ON_FORK
	case unix.SYS_SCHED_SETATTR:
		policy, nice = int(binary.LittleEndian.Uint32(q.In[4:])), int(int32(binary.LittleEndian.Uint32(q.In[16:])))
	}
	fair := policy == unix.SCHED_NORMAL || policy == unix.SCHED_BATCH
	return s.mayRenice(t) && (policy == unix.SCHED_IDLE || fair && t.Policy != unix.SCHED_IDLE && nice >= t.Nice)
}

// mayLimit is check_prlimit_permission of kernel/sys.c, for the user; groups
// follow users here.
func (s *Sender) mayLimit(t *sys.Task) bool {
	return s.Uid == t.Uid[0] && s.Uid == t.Uid[1] && s.Uid == t.Uid[2] || s.has(unix.CAP_SYS_RESOURCE)
}
