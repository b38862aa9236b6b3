package seccomp

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (linux/seccomp.h).
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

// program assembles classic BPF with forward jumps to labels.
type program struct {
	ins    []unix.SockFilter
	fix    []fixup
	labels map[string]int
}

type fixup struct {
	at     int
	jt, jf string // "" falls through
}

func (p *program) label(name string) {
	if p.labels == nil {
		p.labels = map[string]int{}
	}
	p.labels[name] = len(p.ins)
}

func (p *program) ld(off uint32) {
	p.ins = append(p.ins, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off})
}

// argLo and argHi are the halves of argument i.
func argLo(i uint32) uint32 { return offArgs + 8*i }
func argHi(i uint32) uint32 { return offArgs + 8*i + 4 }

func (p *program) ret(k uint32) {
	p.ins = append(p.ins, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k})
}

func (p *program) jump(op uint16, k uint32, jt, jf string) {
	p.fix = append(p.fix, fixup{at: len(p.ins), jt: jt, jf: jf})
	p.ins = append(p.ins, unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k})
}

func (p *program) jeq(k uint32, jt, jf string)  { p.jump(unix.BPF_JEQ, k, jt, jf) }
func (p *program) jge(k uint32, jt, jf string)  { p.jump(unix.BPF_JGE, k, jt, jf) }
func (p *program) jgt(k uint32, jt, jf string)  { p.jump(unix.BPF_JGT, k, jt, jf) }
func (p *program) jset(k uint32, jt, jf string) { p.jump(unix.BPF_JSET, k, jt, jf) }

// link resolves the labels. A conditional jump reaches 255 instructions; blocks
// end in returns of their own, so that is never far.
func (p *program) link() ([]unix.SockFilter, error) {
	resolve := func(at int, l string) (uint8, error) {
		if l == "" {
			return 0, nil
		}
		to, ok := p.labels[l]
		d := to - at - 1
		if !ok || d < 0 || d > 255 {
			return 0, fmt.Errorf("seccomp: jump at %d to %q is out of reach", at, l)
		}
		return uint8(d), nil
	}
	for _, f := range p.fix {
		jt, err := resolve(f.at, f.jt)
		if err != nil {
			return nil, err
		}
		jf, err := resolve(f.at, f.jf)
		if err != nil {
			return nil, err
		}
		p.ins[f.at].Jt, p.ins[f.at].Jf = jt, jf
	}
	if len(p.ins) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("seccomp: filter of %d instructions is too long", len(p.ins))
	}
	return p.ins, nil
}
