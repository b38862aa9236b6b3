package bench

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
)

// noop is the smallest static program: exit(0), with no library, no stack use
// and one page of memory. What its exec costs is what an exec costs.
func noop() []byte {
	code := []byte{
		0xb8, 0x3c, 0, 0, 0, // mov $60,%eax
		0x31, 0xff, // xor %edi,%edi
		0x0f, 0x05, // syscall
	}
	const base, ehdr, phdr = 0x400000, 64, 56
	size := uint64(ehdr + phdr + len(code))
	h := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: base + ehdr + phdr, Phoff: ehdr, Ehsize: ehdr, Phentsize: phdr, Phnum: 1,
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS] = byte(elf.ELFCLASS64)
	h.Ident[elf.EI_DATA] = byte(elf.ELFDATA2LSB)
	h.Ident[elf.EI_VERSION] = byte(elf.EV_CURRENT)
	p := elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X),
		Vaddr: base, Paddr: base, Filesz: size, Memsz: size, Align: 0x1000,
	}
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, &h)
	binary.Write(&b, binary.LittleEndian, &p)
	b.Write(code)
	return b.Bytes()
}

func writeNoop(path string) error { return os.WriteFile(path, noop(), 0o755) }
