package fsnode

import (
	"os"
	"os/exec"
	"strconv"
	"testing"
)

// benchBody runs a body that does something b.N times; size is what each does.
func benchBody(b *testing.B, script string, flags int, size int) {
	p := newPair(b)
	name := b.TempDir() + "/f"
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|flags, 0o644)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	f.Truncate(int64(size))
	r, w := pipe(b)
	c := p.carry(f)
	cmd := exec.Command("python3", "-ISc", script, strconv.Itoa(b.N), strconv.Itoa(size))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = r, c.file, os.Stderr
	ready, told := pipe(b)
	cmd.ExtraFiles = []*os.File{told}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	c.started()
	told.Close()
	one := make([]byte, 1)
	ready.Read(one)
	b.SetBytes(int64(size))
	b.ResetTimer()
	w.Write(one)
	ready.Read(one)
	b.StopTimer()
	if err := cmd.Wait(); err != nil {
		b.Fatal(err)
	}
	c.ended()
}

const around = `import os,sys
n=int(sys.argv[1]); b=b"x"*int(sys.argv[2]); size=len(b)
os.write(3,b"r"); os.read(0,1)
`

func BenchmarkWrite4K(b *testing.B) {
	benchBody(b, around+"for i in range(n): os.write(1,b)\n", os.O_APPEND, 4096)
}

func BenchmarkWrite1M(b *testing.B) {
	benchBody(b, around+"for i in range(n): os.lseek(1,0,0); os.write(1,b)\n", 0, 1<<20)
}

func BenchmarkRead1M(b *testing.B) {
	benchBody(b, around+"for i in range(n): os.lseek(1,0,0); os.read(1,size)\n", 0, 1<<20)
}

func BenchmarkRead1(b *testing.B) {
	benchBody(b, around+"for i in range(n): os.pread(1,1,0)\n", 0, 1)
}

// BenchmarkNativeWrite4K is what BenchmarkWrite4K is compared with.
func BenchmarkNativeWrite4K(b *testing.B) {
	f := temp(b, os.O_RDWR|os.O_APPEND, "")
	buf := make([]byte, 4096)
	b.SetBytes(4096)
	for b.Loop() {
		f.Write(buf)
	}
}

// BenchmarkCarry is what a descriptor costs a placement, from Claim to Close.
func BenchmarkCarry(b *testing.B) {
	p := newPair(b)
	f := temp(b, os.O_RDWR, "")
	for b.Loop() {
		c := p.carry(f)
		c.started()
		c.ended()
	}
}
