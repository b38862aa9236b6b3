package bench

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine is what the figures were measured on.
type Machine struct {
	CPU    string
	CPUs   int
	Memory uint64 // bytes
	Kernel string
	System string
	Load   string // before the run: others disturb
}

func thisMachine() Machine {
	m := Machine{CPUs: runtime.NumCPU(), CPU: field("/proc/cpuinfo", "model name", ":")}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		m.Memory = uint64(si.Totalram) * uint64(si.Unit)
	}
	m.System = strings.Trim(field("/etc/os-release", "PRETTY_NAME", "="), `"`)
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load = strings.Join(strings.Fields(string(b))[:3], " ")
	}
	return m
}

func (m Machine) String() string {
	return fmt.Sprintf("%s, %d processors, %.0f GiB, %s, Linux %s, load before %s",
		m.CPU, m.CPUs, float64(m.Memory)/(1<<30), m.System, m.Kernel, m.Load)
}

// field returns the value of the first line that begins with key.
func field(file, key, sep string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), sep); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
