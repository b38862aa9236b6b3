package rexec

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
	"unum/deputy"
)

// capVersion is _LINUX_CAPABILITY_VERSION_3.
const capVersion = 0x20080522

// mountNum is where the new process finds the node's private mount while it
// opens its descriptors; the exec closes it.
const mountNum = 1000

// cttyNum is where a session's leader finds its terminal; the exec closes it.
const cttyNum = 1002

// arenaRoom is how many bytes of arguments fit the stub's own data; more is
// mapped first.
const arenaRoom = 100 << 10

// bodyProgram is what a newborn stub does to become the process of spec. The
// order matters: whatever needs root comes before the credentials, and these
// in the order that lets each still be set.
func (m *maker) bodyProgram(spec *Spec, opens []open) *deputy.Program {
	p := &deputy.Program{}
	size := 0
	for _, s := range spec.Argv {
		size += len(s) + 9
	}
	for _, s := range spec.Env {
		size += len(s) + 9
	}
	if size > arenaRoom {
		p.Big()
	}
	cookie := m.cookie
	switch {
	case spec.Pid != 0 && spec.Pid == spec.Sid, spec.Sid == newSession:
		p.Must(unix.SYS_SETSID, 0, 0, 0, 0, 0, cookie)
	case spec.Pgid == newGroup || spec.Pid != 0 && spec.Pgid == spec.Pid:
		p.Must(unix.SYS_SETPGID, 0, 0, 0, 0, 0, cookie)
	case spec.Pgid != spec.Sid:
		p.Must(unix.SYS_SETPGID, 0, uint64(spec.Pgid), 0, 0, 0, cookie)
	}
	if spec.ctty >= 0 {
		p.Must(unix.SYS_IOCTL, uint64(spec.ctty), unix.TIOCSCTTY, 0, 0, 0, cookie)
	}
	if spec.fg {
		// Before it runs, or it would see itself in the background; SIGTTOU is
		// blocked. A failure is mended by the carrier of the terminal.
		tty := p.Do(unix.SYS_OPENAT, atCwd, p.String("/dev/tty"), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY)
		p.DoRef(tty, unix.SYS_IOCTL, unix.TIOCSPGRP, p.Halves(uint32(spec.Pgid)), 0, 0, cookie)
		p.DoRef(tty, unix.SYS_CLOSE)
	}
	for _, o := range opens {
		o.add(p)
	}
	p.Must(unix.SYS_UMASK, uint64(spec.Umask))
	p.Must(unix.SYS_CHDIR, p.String(spec.Cwd))
	for i, l := range spec.Limits {
		if l != m.limits[i] {
			p.Must(unix.SYS_PRLIMIT64, 0, uint64(i), p.Words(l.Cur, l.Max), 0)
		}
	}
	if spec.Nice != 0 {
		p.Must(unix.SYS_SETPRIORITY, unix.PRIO_PROCESS, 0, uint64(spec.Nice), 0, 0, cookie)
	}
	if spec.IOPrio != m.ioprio {
		p.Must(unix.SYS_IOPRIO_SET, 1 /* IOPRIO_WHO_PROCESS */, 0, uint64(spec.IOPrio))
	}
	if spec.OOM != 0 {
		s := fmt.Sprint(spec.OOM)
		f := p.Must(unix.SYS_OPENAT, atCwd, p.String("/proc/self/oom_score_adj"), unix.O_WRONLY|unix.O_CLOEXEC)
		p.MustRef(f, unix.SYS_WRITE, p.String(s), uint64(len(s)))
	}
	if spec.Persona != 0 {
		p.Must(unix.SYS_PERSONALITY, spec.Persona)
	}
	for sig := uint64(1); sig <= 64; sig++ {
		if spec.SigIgn&(1<<(sig-1)) != 0 {
			p.Must(unix.SYS_RT_SIGACTION, sig, p.Words(1 /* SIG_IGN */, 0, 0, 0), 0, 8)
		}
	}
	if spec.Reaper {
		p.Must(unix.SYS_PRCTL, unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0, cookie)
	}
	m.credentials(p, spec)
	// All signals are blocked still, so these stay pending.
	for sig := uint64(1); sig <= 64; sig++ {
		if spec.SigPnd&(1<<(sig-1)) != 0 {
			self := p.Must(unix.SYS_GETPID)
			p.MustRef(self, unix.SYS_KILL, sig, 0, 0, 0, cookie)
		}
	}
	// Only now may a signal end it, as it would the caller.
	p.Must(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, p.Words(spec.SigBlk), 0, 8)
	pass := cookie
	if spec.placeable {
		pass = 0
	}
	p.Must(unix.SYS_EXECVE, p.String(spec.Path), p.Vector(spec.Argv), p.Vector(spec.Env), 0, 0, pass)
	return p
}

const atCwd = uint64(0xffffffffffffff9c) // AT_FDCWD

// credentials sets ids and capabilities of spec; see capabilities(7) for what
// each step takes away.
func (m *maker) credentials(p *deputy.Program, spec *Spec) {
	for c := uint64(0); c < 64; c++ {
		if m.caps.CapBnd&^spec.CapBnd&(1<<c) != 0 {
			p.Must(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		}
	}
	if spec.NoNewPrivs {
		p.Must(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	if len(spec.Groups) > 0 || len(m.caps.Groups) > 0 {
		p.Must(unix.SYS_SETGROUPS, uint64(len(spec.Groups)), p.Halves(spec.Groups...))
	}
	same := spec.CapInh == m.caps.CapInh && spec.CapPrm == m.caps.CapPrm && spec.CapEff == m.caps.CapEff
	root := spec.Uid == [4]uint32{} && spec.Gid == [4]uint32{}
	if root && same && spec.CapAmb == 0 {
		return
	}
	keep := spec.CapPrm != 0
	if keep {
		p.Must(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
	}
	p.Must(unix.SYS_SETRESGID, uint64(spec.Gid[0]), uint64(spec.Gid[1]), uint64(spec.Gid[2]))
	if spec.Gid[3] != spec.Gid[1] {
		p.Must(unix.SYS_SETFSGID, uint64(spec.Gid[3]))
	}
	p.Must(unix.SYS_SETRESUID, uint64(spec.Uid[0]), uint64(spec.Uid[1]), uint64(spec.Uid[2]))
	if spec.Uid[3] != spec.Uid[1] {
		p.Must(unix.SYS_SETFSUID, uint64(spec.Uid[3]))
	}
	hdr := p.Halves(capVersion, 0)
	data := p.Halves(
		uint32(spec.CapEff), uint32(spec.CapPrm), uint32(spec.CapInh),
		uint32(spec.CapEff>>32), uint32(spec.CapPrm>>32), uint32(spec.CapInh>>32))
	p.Must(unix.SYS_CAPSET, hdr, data)
	for c := uint64(0); c < 64; c++ {
		if spec.CapAmb&(1<<c) != 0 {
			p.Must(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0)
		}
	}
	if keep {
		p.Must(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 0, 0, 0, 0)
	}
}

// open is a descriptor that the newborn opens itself, while it is root.
type open struct {
	carry.OpenAt
	nums  []int
	above int // a number above all final ones
}

func (o *open) add(p *deputy.Program) {
	dir := atCwd
	if o.Share {
		dir = mountNum
	}
	first := p.Must(unix.SYS_OPENAT, dir, p.String(o.Path), uint64(o.Flags|unix.O_CLOEXEC|unix.O_NOCTTY))
	// The lowest free number may be another descriptor's final one.
	tmp := p.MustRef(first, unix.SYS_FCNTL, unix.F_DUPFD_CLOEXEC, uint64(o.above))
	p.MustRef(first, unix.SYS_CLOSE)
	if o.Seek > 0 {
		p.MustRef(tmp, unix.SYS_LSEEK, uint64(o.Seek), unix.SEEK_SET)
	}
	for _, n := range o.nums {
		p.MustRef(tmp, unix.SYS_DUP3, uint64(n), 0)
	}
	p.MustRef(tmp, unix.SYS_CLOSE)
}

// forkProgram makes a child stub; pid 0 takes the next free number.
func forkProgram(pid int32) *deputy.Program {
	p := &deputy.Program{}
	var set, n uint64
	if pid != 0 {
		set, n = p.Halves(uint32(pid)), 1
	}
	// struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal,
	// stack, stack_size, tls, set_tid, set_tid_size (man 2 clone).
	args := p.Words(0, 0, 0, 0, uint64(unix.SIGCHLD), 0, 0, 0, set, n)
	p.Fork(args, 80)
	return p
}

// agentProgram is the first thing an agent does: it drops what it inherited
// and takes the default dispositions, which exec would keep ignored.
func agentProgram(session, group bool, tty int, cookie uint64) *deputy.Program {
	p := &deputy.Program{}
	if session {
		p.Must(unix.SYS_SETSID, 0, 0, 0, 0, 0, cookie)
	}
	if group {
		p.Must(unix.SYS_SETPGID, 0, 0, 0, 0, 0, cookie)
	}
	if tty >= 0 {
		p.Must(unix.SYS_IOCTL, uint64(tty), unix.TIOCSCTTY, 0, 0, 0, cookie)
	}
	p.Do(unix.SYS_CLOSE_RANGE, 0, uint64(^uint32(0)), 0)
	dfl := p.Words(0, 0, 0, 0)
	for _, sig := range []unix.Signal{unix.SIGCHLD, unix.SIGHUP, unix.SIGPIPE, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM} {
		p.Do(unix.SYS_RT_SIGACTION, uint64(sig), dfl, 0, 8)
	}
	p.Do(unix.SYS_PRCTL, unix.PR_SET_NAME, p.String("unum-agent"))
	return p
}

// waitSlots is how many children one round of waitProgram reaps.
const waitSlots = 8

// waitProgram collects what happened to an agent's children. The results lie
// at the address it returns: waitSlots times a siginfo of 128 bytes and a
// struct rusage of 144.
func waitProgram(cookie uint64) (*deputy.Program, uint64) {
	p := &deputy.Program{Tag: waitTag}
	at := p.Bytes(make([]byte, waitSlots*waitSize))
	for i := uint64(0); i < waitSlots; i++ {
		info := at + i*waitSize
		p.Must(unix.SYS_WAITID, unix.P_ALL, 0, info,
			unix.WEXITED|unix.WSTOPPED|unix.WCONTINUED|unix.WNOHANG, info+128, cookie)
	}
	return p, at
}

const waitSize = 128 + 144

// waitTag marks waitProgram in an agent's memory.
const waitTag = 0x77616974

// parseUsage reads a struct rusage (man 2 getrusage).
func parseUsage(b []byte) unum.Usage {
	w := func(i int) int64 { return int64(binary.LittleEndian.Uint64(b[8*i:])) }
	return unum.Usage{
		Utime: w(0)*1e6 + w(1), Stime: w(2)*1e6 + w(3), MaxRSS: w(4),
		MinFlt: w(8), MajFlt: w(9), InBlock: w(11), OutBlock: w(12),
		NVCSw: w(16), NIvCSw: w(17),
	}
}

// exitProgram ends a deputy as its body ended. For a death with a core the
// kernel must really dump: a limit of one page and a filter that selects
// nothing keep it small, and the directory is a scratch one.
func exitProgram(e eventReq, scratch string, cookie uint64) *deputy.Program {
	p := &deputy.Program{}
	if e.Kind == exited {
		p.Do(unix.SYS_EXIT_GROUP, uint64(e.Status))
		return p
	}
	sig := uint64(e.Status)
	if e.Core {
		p.Do(unix.SYS_CHDIR, p.String(scratch))
		p.Do(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_CORE, p.Words(4096, 4096), 0)
		f := p.Do(unix.SYS_OPENAT, atCwd, p.String("/proc/self/coredump_filter"), unix.O_WRONLY)
		p.MustRef(f, unix.SYS_WRITE, p.String("0"), 1)
		p.Do(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1)
	} else {
		p.Do(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_CORE, p.Words(0, 0), 0)
	}
	dieBy(p, sig, cookie)
	// Not reached, unless the signal's default is to be ignored.
	p.Do(unix.SYS_EXIT_GROUP, 128+sig)
	return p
}

// stopProgram stops a deputy by the signal that stopped its body. It comes
// back when the deputy is continued, or at once if a SIGCONT is pending: the
// kernel would sweep that away.
func stopProgram(sig uint64, cookie uint64) *deputy.Program {
	p := &deputy.Program{}
	p.UnlessPending(unix.SIGCONT)
	dieBy(p, sig, cookie)
	p.Do(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, p.Words(^uint64(0)), 0, 8)
	return p
}

// dieBy lets one signal through, with its default action, and sends it.
func dieBy(p *deputy.Program, sig, cookie uint64) {
	p.Do(unix.SYS_RT_SIGACTION, sig, p.Words(0, 0, 0, 0), 0, 8)
	self := p.Do(unix.SYS_GETPID)
	p.MustRef(self, unix.SYS_KILL, sig, 0, 0, 0, cookie)
	p.Do(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, p.Words(^uint64(1<<(sig-1))), 0, 8)
}
