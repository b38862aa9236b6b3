package seccomp

import (
	"encoding/binary"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"unum"
)

// run is what the kernel's classic BPF does with a seccomp filter.
func run(t *testing.T, f []unix.SockFilter, data []byte) uint32 {
	t.Helper()
	var a uint32
	for pc := 0; pc < len(f); pc++ {
		in := f[pc]
		jump := func(cond bool) {
			if cond {
				pc += int(in.Jt)
			} else {
				pc += int(in.Jf)
			}
		}
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = binary.LittleEndian.Uint32(data[in.K:])
		case unix.BPF_RET | unix.BPF_K:
			return in.K
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump(a == in.K)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			jump(a >= in.K)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			jump(a > in.K)
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			jump(a&in.K != 0)
		default:
			t.Fatalf("instruction %d: code %#x", pc, in.Code)
		}
	}
	t.Fatal("the filter ends without an answer")
	return 0
}

// seccompData is struct seccomp_data.
func seccompData(arch, nr uint32, args ...uint64) []byte {
	b := make([]byte, 64)
	binary.LittleEndian.PutUint32(b[offNr:], nr)
	binary.LittleEndian.PutUint32(b[offArch:], arch)
	for i, a := range args {
		binary.LittleEndian.PutUint64(b[offArgs+8*i:], a)
	}
	return b
}

const testCookie = 0x1122334455667788

func testFilter(t *testing.T) []unix.SockFilter {
	t.Helper()
	f, err := Filter(Params{Range: unum.RangeOf(1), Cookie: testCookie})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFilter(t *testing.T) {
	f := testFilter(t)
	own, other := uint64(unum.RangeOf(1).First)+5, uint64(unum.RangeOf(0).First)+5
	first, last := uint64(unum.RangeOf(1).First), uint64(unum.RangeOf(1).Last())
	minus := func(pid uint64) uint64 { return uint64(uint32(-int32(pid))) } // as an int in a register
	const ptr = 0x7fff00001000
	for _, c := range []struct {
		what string
		want uint32
		nr   uint32
		args []uint64
	}{
		{"read", retAllow, unix.SYS_READ, []uint64{0, ptr, 1}},
		{"exec", retNotify, unix.SYS_EXECVE, []uint64{ptr, ptr, ptr}},
		{"execveat", retNotify, unix.SYS_EXECVEAT, []uint64{3, ptr, ptr, ptr, 0}},
		{"a deputy's call", retNotify, PRIV, nil},
		{"x32", retENOSYS, x32Bit | unix.SYS_GETPID, nil},

		{"kill own", retAllow, unix.SYS_KILL, []uint64{own, 15}},
		{"kill the first of the range", retAllow, unix.SYS_KILL, []uint64{first, 15}},
		{"kill the last of the range", retAllow, unix.SYS_KILL, []uint64{last, 15}},
		{"kill behind the range", retNotify, unix.SYS_KILL, []uint64{last + 1, 15}},
		{"kill before the range", retNotify, unix.SYS_KILL, []uint64{first - 1, 15}},
		{"kill another node's", retNotify, unix.SYS_KILL, []uint64{other, 15}},
		{"kill pid 1", retAllow, unix.SYS_KILL, []uint64{1, 15}},
		{"kill the own group", retNotify, unix.SYS_KILL, []uint64{0, 15}},
		{"kill an own group", retNotify, unix.SYS_KILL, []uint64{minus(own), 15}},
		{"kill all", retNotify, unix.SYS_KILL, []uint64{minus(1), 15}},
		{"stop own", retNotify, unix.SYS_KILL, []uint64{own, uint64(unix.SIGSTOP)}},
		{"continue own", retNotify, unix.SYS_KILL, []uint64{own, uint64(unix.SIGCONT)}},
		{"stop pid 1", retAllow, unix.SYS_KILL, []uint64{1, uint64(unix.SIGSTOP)}},

		{"tgkill own thread", retAllow, unix.SYS_TGKILL, []uint64{own, own, 10}},
		{"tgkill another node's", retNotify, unix.SYS_TGKILL, []uint64{other, other, 10}},
		{"preempt a thread of a body", retAllow, unix.SYS_TGKILL, []uint64{other, other, uint64(unix.SIGURG)}},
		{"cancel a thread of a body", retAllow, unix.SYS_TGKILL, []uint64{other, other, 32}},
		{"setxid in a body", retAllow, unix.SYS_TKILL, []uint64{other, 33}},

		{"getpgid of oneself", retAllow, unix.SYS_GETPGID, []uint64{0}},
		{"getpgid own", retAllow, unix.SYS_GETPGID, []uint64{own}},
		{"getpgid of another node's", retNotify, unix.SYS_GETPGID, []uint64{other}},
		{"prlimit of oneself", retAllow, unix.SYS_PRLIMIT64, []uint64{0, 7, 0, ptr}},
		{"prlimit of another node's", retNotify, unix.SYS_PRLIMIT64, []uint64{other, 7, 0, ptr}},
		{"prlimit own", retNotify, unix.SYS_PRLIMIT64, []uint64{own, 7, 0, ptr}},
		{"prlimit in a namespace made inside", retAllow, unix.SYS_PRLIMIT64, []uint64{2, 7, 0, ptr}},
		{"getpriority of oneself", retAllow, unix.SYS_GETPRIORITY, []uint64{0, 0}},
		{"setpriority own", retNotify, unix.SYS_SETPRIORITY, []uint64{0, own, 5}},
		{"ptrace own", retAllow, unix.SYS_PTRACE, []uint64{16, own}},
		{"ptrace another node's", retNotify, unix.SYS_PTRACE, []uint64{16, other}},
		{"setpriority of another node's", retNotify, unix.SYS_SETPRIORITY, []uint64{0, other, 5}},
		{"setpgid of oneself", retNotify, unix.SYS_SETPGID, []uint64{0, 0}},
		{"setpgid own", retAllow, unix.SYS_SETPGID, []uint64{own, 0}},

		{"tcsetpgrp", retNotify, unix.SYS_IOCTL, []uint64{0, unix.TIOCSPGRP, ptr}},
		{"set non-blocking", retNotify, unix.SYS_FCNTL, []uint64{5, unix.F_SETFL, unix.O_NONBLOCK}},
		{"get flags", retAllow, unix.SYS_FCNTL, []uint64{5, unix.F_GETFL}},
		{"FIONBIO", retNotify, unix.SYS_IOCTL, []uint64{5, FIONBIO, ptr}},
		{"set the parent-death signal", retNotify, unix.SYS_PRCTL, []uint64{unix.PR_SET_PDEATHSIG, 15}},
		{"get the parent-death signal", retNotify, unix.SYS_PRCTL, []uint64{unix.PR_GET_PDEATHSIG, ptr}},
		{"prctl", retAllow, unix.SYS_PRCTL, []uint64{unix.PR_SET_NAME, ptr}},
		{"tcgetattr", retAllow, unix.SYS_IOCTL, []uint64{0, unix.TCGETS, ptr}},
		{"wait4 without usage", retAllow, unix.SYS_WAIT4, []uint64{own, ptr, 0, 0}},
		{"wait4 with usage", retNotify, unix.SYS_WAIT4, []uint64{own, ptr, 0, ptr}},
		{"wait4 with usage above 4 GiB", retNotify, unix.SYS_WAIT4, []uint64{own, ptr, 0, 1 << 32}},
		{"waitid with usage", retNotify, unix.SYS_WAITID, []uint64{0, 0, ptr, 4, ptr}},
		{"usage of oneself", retAllow, unix.SYS_GETRUSAGE, []uint64{0, ptr}},
		{"usage of children", retNotify, unix.SYS_GETRUSAGE, []uint64{minus(1), ptr}},
		{"times", retNotify, unix.SYS_TIMES, []uint64{ptr}},
		{"clock of times", retAllow, unix.SYS_TIMES, []uint64{0}},
		{"setsid", retNotify, unix.SYS_SETSID, nil},
		{"getppid", retNotify, unix.SYS_GETPPID, nil},
		{"connect", retNotify, unix.SYS_CONNECT, []uint64{3, ptr, 16}},
	} {
		t.Run(c.what, func(t *testing.T) {
			d := seccompData(ArchX86_64, c.nr, c.args...)
			if got := run(t, f, d); got != c.want {
				t.Errorf("answer %#x, want %#x", got, c.want)
			}
			if c.nr == PRIV || c.want != retNotify {
				return
			}
			// The daemon's own calls through a stub pass; half a cookie does not.
			at := offArgs + 8*5
			binary.LittleEndian.PutUint64(d[at:], testCookie)
			if got := run(t, f, d); got != retAllow {
				t.Errorf("with the cookie: answer %#x", got)
			}
			for _, wrong := range []uint64{testCookie & 0xffffffff, testCookie &^ 0xffffffff, testCookie + 1} {
				binary.LittleEndian.PutUint64(d[at:], wrong)
				if got := run(t, f, d); got != retNotify {
					t.Errorf("with the wrong cookie %#x: answer %#x", wrong, got)
				}
			}
		})
	}
}

// 32-bit programs stay where they are, but their signals travel.
func TestFilter32(t *testing.T) {
	f := testFilter(t)
	other := uint64(unum.RangeOf(0).First) + 5
	for _, c := range []struct {
		arch, nr uint32
		arg      uint64
		want     uint32
	}{
		{ArchI386, 11, 0, retAllow}, // execve
		{ArchI386, 37, other, retNotify},
		{ArchI386, 37, 1, retAllow},
		{ArchI386, 132, other, retNotify},
		{ArchI386, 132, 0, retAllow},
		{unix.AUDIT_ARCH_AARCH64, 1, 0, retENOSYS},
	} {
		if got := run(t, f, seccompData(c.arch, c.nr, c.arg, 15)); got != c.want {
			t.Errorf("arch %#x call %d(%d): answer %#x, want %#x", c.arch, c.nr, c.arg, got, c.want)
		}
	}
}

// What every program does all the time must be decided without a look at its
// arguments: then the kernel remembers the answer and runs no filter at all.
func TestHotCallsDependOnNumberOnly(t *testing.T) {
	f := testFilter(t)
	for _, nr := range []uint32{
		unix.SYS_READ, unix.SYS_WRITE, unix.SYS_OPENAT, unix.SYS_CLOSE, unix.SYS_LSEEK, unix.SYS_MMAP,
		unix.SYS_MUNMAP, unix.SYS_BRK, unix.SYS_NEWFSTATAT, unix.SYS_FSTAT, unix.SYS_STAT, unix.SYS_FUTEX,
		unix.SYS_EPOLL_WAIT, unix.SYS_POLL, unix.SYS_RECVFROM, unix.SYS_SENDTO, unix.SYS_CLONE, unix.SYS_CLONE3,
		unix.SYS_VFORK, unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_GETPID, unix.SYS_DUP2, unix.SYS_PIPE2,
	} {
		d := seccompData(ArchX86_64, nr)
		for i := offArgs; i < len(d); i++ {
			d[i] = 0xff
		}
		if err := constant(f, d); err != nil {
			t.Errorf("call %d: %v", nr, err)
		}
	}
}

// constant follows the filter as the kernel does when it prepares its cache
// (seccomp_is_const_allow): any load of an argument ends that.
func constant(f []unix.SockFilter, data []byte) error {
	var a uint32
	for pc := 0; pc < len(f); pc++ {
		in := f[pc]
		yes := false
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			if in.K != offNr && in.K != offArch {
				return fmt.Errorf("instruction %d looks at an argument", pc)
			}
			a = binary.LittleEndian.Uint32(data[in.K:])
			continue
		case unix.BPF_RET | unix.BPF_K:
			if in.K != retAllow {
				return fmt.Errorf("answer %#x", in.K)
			}
			return nil
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			yes = a == in.K
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			yes = a >= in.K
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			yes = a > in.K
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			yes = a&in.K != 0
		default:
			return fmt.Errorf("instruction %d has code %#x", pc, in.Code)
		}
		if yes {
			pc += int(in.Jt)
		} else {
			pc += int(in.Jf)
		}
	}
	return fmt.Errorf("no answer")
}
