package seccomp

import (
	"fmt"

	"golang.org/x/sys/unix"

	"unum"
)

// PRIV is the deputy's own system call. No kernel has it; the filter turns it
// into a notification.
const PRIV = 0x756e75

// FIONBIO is the ioctl that sets O_NONBLOCK, on x86 and ARM.
const FIONBIO = 0x5421

// ABI says by which convention a trapped call was made.
const (
	ArchX86_64 = unix.AUDIT_ARCH_X86_64
	ArchI386   = unix.AUDIT_ARCH_I386
)

const x32Bit = 0x40000000

// Params is what the filter depends on besides the architecture.
type Params struct {
	Range  unum.PIDRange // the node's own; signals within it need no help
	Cookie uint64        // a call whose sixth argument is this was made by the daemon
}

const (
	retAllow  = unix.SECCOMP_RET_ALLOW
	retNotify = unix.SECCOMP_RET_USER_NOTIF
	retENOSYS = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// Filter returns the world's filter.
func Filter(pr Params) ([]unix.SockFilter, error) {
	p := &program{}
	p.ld(offArch)
	p.jeq(unix.AUDIT_ARCH_X86_64, "x86_64", "")
	p.jeq(unix.AUDIT_ARCH_I386, "", "other-arch")
	p.ld(offNr)
	i386(p, pr)
	p.ret(retAllow)
	p.label("other-arch")
	p.ret(retENOSYS)

	p.label("x86_64")
	p.ld(offNr)
	b := &blocks{p: p, pr: pr}
	b.nr(PRIV, func() { p.ret(retNotify) })
	p.jset(x32Bit, "x32", "not-x32")
	p.label("x32")
	p.ret(retENOSYS)
	p.label("not-x32")

	for _, nr := range []uint32{unix.SYS_EXECVE, unix.SYS_EXECVEAT} {
		b.nr(nr, b.unlessCookie)
	}
	b.nr(unix.SYS_KILL, func() { b.signal(0, 1) })
	b.nr(unix.SYS_RT_SIGQUEUEINFO, func() { b.signal(0, 1) })
	b.nr(unix.SYS_TKILL, func() { b.threadSignal(0, 1) })
	b.nr(unix.SYS_TGKILL, func() { b.threadSignal(1, 2) })
	b.nr(unix.SYS_RT_TGSIGQUEUEINFO, func() { b.threadSignal(1, 2) })
	for _, c := range pidCalls {
		b.nr(c.nr, func() { b.foreign(c.arg, true) })
	}
	for _, c := range bodyCalls {
		b.nr(c.nr, func() { b.numbered(c.arg) })
	}
	// A body's own number is foreign where it runs, so "myself" is decided by
	// the supervisor.
	b.nr(unix.SYS_SETPGID, func() { b.foreign(0, false) })
	b.nr(unix.SYS_IOCTL, func() { b.oneOf(1, unix.TIOCSPGRP, unix.TIOCSCTTY, unix.TIOCNOTTY, FIONBIO) })
	b.nr(unix.SYS_WAIT4, func() { b.unlessNull(3) })
	b.nr(unix.SYS_WAITID, func() { b.unlessNull(4) })
	b.nr(unix.SYS_GETRUSAGE, func() { b.onlyIf(0, ^uint32(0)) })
	b.nr(unix.SYS_TIMES, func() { b.unlessNull(0) })
	// What a body's deputy must know of, who takes in orphans, and what belongs
	// to a description that others share.
	b.nr(unix.SYS_PRCTL, func() {
		b.oneOf(0, unix.PR_SET_PDEATHSIG, unix.PR_GET_PDEATHSIG, unix.PR_SET_CHILD_SUBREAPER)
	})
	b.nr(unix.SYS_FCNTL, func() { b.oneOf(1, unix.F_SETFL) })
	for _, nr := range always {
		b.nr(nr, b.unlessCookie)
	}
	p.ret(retAllow)
	return p.link()
}

// pidCalls take a PID in argument arg and are trapped when it is not of this
// node's range. 0, the caller itself, is never trapped.
var pidCalls = []struct{ nr, arg uint32 }{
	{unix.SYS_GETPGID, 0}, {unix.SYS_GETSID, 0}, {unix.SYS_PIDFD_OPEN, 0}, {unix.SYS_PTRACE, 1},
	{unix.SYS_PROCESS_VM_READV, 0}, {unix.SYS_PROCESS_VM_WRITEV, 0}, {unix.SYS_KCMP, 0},
}

// bodyCalls are trapped for numbers of this node's range too, since they are
// about a body and never about the deputy that has the number here.
var bodyCalls = []struct{ nr, arg uint32 }{
	{unix.SYS_PRLIMIT64, 0},
	{unix.SYS_SCHED_SETAFFINITY, 0}, {unix.SYS_SCHED_GETAFFINITY, 0},
	{unix.SYS_SCHED_SETSCHEDULER, 0}, {unix.SYS_SCHED_GETSCHEDULER, 0},
	{unix.SYS_SCHED_SETPARAM, 0}, {unix.SYS_SCHED_GETPARAM, 0},
	{unix.SYS_SCHED_SETATTR, 0}, {unix.SYS_SCHED_GETATTR, 0},
	{unix.SYS_SCHED_RR_GET_INTERVAL, 0},
	{unix.SYS_GETPRIORITY, 1}, {unix.SYS_SETPRIORITY, 1},
	{unix.SYS_IOPRIO_GET, 1}, {unix.SYS_IOPRIO_SET, 1},
}

// always trapped: rare calls whose handler must see every one.
var always = []uint32{
	unix.SYS_SETSID, unix.SYS_GETPPID,
	unix.SYS_CONNECT, unix.SYS_BIND, unix.SYS_LISTEN,
	unix.SYS_SHMGET, unix.SYS_SEMGET, unix.SYS_MSGGET, unix.SYS_MQ_OPEN,
	unix.SYS_LANDLOCK_RESTRICT_SELF,
}

// i386 traps the signal calls of 32-bit programs; their execs stay home.
func i386(p *program, pr Params) {
	b := &blocks{p: p, pr: pr}
	b.nr(37, func() { b.signal(0, 1) })          // kill
	b.nr(178, func() { b.signal(0, 1) })         // rt_sigqueueinfo
	b.nr(238, func() { b.threadSignal(0, 1) })   // tkill
	b.nr(270, func() { b.threadSignal(1, 2) })   // tgkill
	b.nr(335, func() { b.threadSignal(1, 2) })   // rt_tgsigqueueinfo
	for _, nr := range []uint32{132, 147, 434} { // getpgid, getsid, pidfd_open
		b.nr(nr, func() { b.foreign(0, true) })
	}
}

// blocks emits one self-contained block per call number: it is skipped when
// the number does not match, and returns otherwise.
type blocks struct {
	p  *program
	pr Params
	n  int
}

func (b *blocks) fresh(s string) string { b.n++; return fmt.Sprintf("%p/%s%d", b, s, b.n) }

func (b *blocks) nr(nr uint32, body func()) {
	skip := b.fresh("skip")
	b.p.jeq(nr, "", skip)
	body()
	b.p.label(skip)
}

// notifyOrAllow ends a block. A call that the daemon made through a stub
// carries the cookie as its sixth argument and is never trapped.
func (b *blocks) notifyOrAllow(notify, allow string) {
	n := b.fresh("notify")
	b.p.label(notify)
	b.p.ld(argLo(5))
	b.p.jeq(uint32(b.pr.Cookie), "", n)
	b.p.ld(argHi(5))
	b.p.jeq(uint32(b.pr.Cookie>>32), allow, n)
	b.p.label(n)
	b.p.ret(retNotify)
	b.p.label(allow)
	b.p.ret(retAllow)
}

func (b *blocks) unlessCookie() {
	n, a := b.fresh("notify"), b.fresh("allow")
	b.notifyOrAllow(n, a)
}

// local leaves through n when the PID in the accumulator is of another node.
func (b *blocks) local(n, a string) {
	next := b.fresh("own")
	b.p.jge(uint32(unum.FirstPid), "", a) // pid 1 and wrapped births: nobody else has them
	b.p.jge(uint32(b.pr.Range.First), next, n)
	b.p.label(next)
	b.p.jgt(uint32(b.pr.Range.Last()), n, "")
}

// signal: kill to a group, to everybody, to another node, or a SIGSTOP, which
// a deputy cannot see, or a SIGCONT, which it may sweep away unseen.
func (b *blocks) signal(pidArg, sigArg uint32) {
	n, a := b.fresh("notify"), b.fresh("allow")
	b.p.ld(argLo(pidArg))
	b.p.jeq(0, n, "")
	b.local(n, a)
	b.p.ld(argLo(sigArg))
	b.p.jeq(uint32(unix.SIGSTOP), n, "")
	b.p.jeq(uint32(unix.SIGCONT), n, a)
	b.notifyOrAllow(n, a)
}

// threadSignal lets the signals through that language runtimes send to
// themselves all the time, so that they never depend on a live daemon: SIGURG
// (Go's preemption), 32 and 33 (glibc's cancellation and setxid).
func (b *blocks) threadSignal(tidArg, sigArg uint32) {
	n, a := b.fresh("notify"), b.fresh("allow")
	b.p.ld(argLo(sigArg))
	for _, s := range []uint32{uint32(unix.SIGURG), 32, 33} {
		b.p.jeq(s, a, "")
	}
	b.p.ld(argLo(tidArg))
	b.local(n, a)
	b.p.ret(retAllow)
	b.notifyOrAllow(n, a)
}

func (b *blocks) foreign(arg uint32, allowZero bool) {
	n, a := b.fresh("notify"), b.fresh("allow")
	b.p.ld(argLo(arg))
	if allowZero {
		b.p.jeq(0, a, "")
	} else {
		b.p.jeq(0, n, "")
	}
	b.local(n, a)
	b.p.ret(retAllow)
	b.notifyOrAllow(n, a)
}

// numbered: any number that a process of the cluster can have.
func (b *blocks) numbered(arg uint32) {
	n, a := b.fresh("notify"), b.fresh("allow")
	b.p.ld(argLo(arg))
	b.p.jge(uint32(unum.FirstPid), n, a)
	b.notifyOrAllow(n, a)
}

// oneOf: the argument, as an int, has one of the values.
func (b *blocks) oneOf(arg uint32, values ...uint32) {
	n, a := b.fresh("notify"), b.fresh("allow")
	b.p.ld(argLo(arg))
	for _, v := range values {
		b.p.jeq(v, n, "")
	}
	b.p.ret(retAllow)
	b.notifyOrAllow(n, a)
}

func (b *blocks) unlessNull(arg uint32) {
	n, a := b.fresh("notify"), b.fresh("allow")
	b.p.ld(argLo(arg))
	b.p.jeq(0, "", n)
	b.p.ld(argHi(arg))
	b.p.jeq(0, a, n)
	b.notifyOrAllow(n, a)
}

func (b *blocks) onlyIf(arg, value uint32) {
	n, a := b.fresh("notify"), b.fresh("allow")
	b.p.ld(argLo(arg))
	b.p.jeq(value, n, a)
	b.notifyOrAllow(n, a)
}
