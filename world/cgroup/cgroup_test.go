package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"unum"
)

func needRoot(t *testing.T) layout {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	l := detect()
	if l.registry == "" {
		t.Skip("needs cgroups")
	}
	return l
}

// layouts are the machine's own and, where it has v1 too, one without v2.
func layouts(t *testing.T) map[string]layout {
	l := needRoot(t)
	ls := map[string]layout{"native": l}
	if l.v2 != "" && l.cpu != "" {
		ls["v1"] = layout{cpu: l.cpu, registry: filepath.Join(root, "freezer")}
	}
	return ls
}

func TestMembersAndRemoval(t *testing.T) {
	for kind, l := range layouts(t) {
		t.Run(kind, func(t *testing.T) {
			name := fmt.Sprintf("unum-test-%d/n1", os.Getpid())
			g, err := create(l, name, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer open(l, filepath.Dir(name)).Remove(context.Background())
			w, err := g.Child("world")
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(filepath.Join(w.Dir(), "nested"), 0o755); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("sleep", "100")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if err := w.Enrol(cmd.Process.Pid); err != nil {
				t.Fatal(err)
			}
			pids, err := g.Procs()
			if err != nil || !slices.Equal(pids, []int{cmd.Process.Pid}) {
				t.Fatalf("Procs() = %v, %v; want [%d]", pids, err, cmd.Process.Pid)
			}
			done, cancel := context.WithCancel(context.Background())
			cancel()
			if err := g.Remove(done); err == nil {
				t.Fatal("a group with a living member was removed")
			}
			if err := g.Kill(); err != nil {
				t.Fatal(err)
			}
			cmd.Wait()
			if err := g.Remove(context.Background()); err != nil {
				t.Fatal(err)
			}
			for _, d := range g.dirs {
				if isDir(d) {
					t.Errorf("%s is still there", d)
				}
			}
			if err := g.Remove(context.Background()); err != nil {
				t.Errorf("second Remove: %v", err)
			}
		})
	}
}

func TestCap(t *testing.T) {
	l := needRoot(t)
	name := fmt.Sprintf("unum-test-cap-%d", os.Getpid())
	g, err := create(l, name, 0.3)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Remove(context.Background())
	read := func(dir, file string) string {
		b, _ := os.ReadFile(filepath.Join(dir, name, file))
		return strings.TrimSpace(string(b))
	}
	got, want := read(l.cpu, "cpu.cfs_quota_us")+" "+read(l.cpu, "cpu.cfs_period_us"), "3000 10000"
	if l.v2cpu {
		got = read(l.v2, "cpu.max")
	}
	if got != want {
		t.Errorf("cap is %q, want %q", got, want)
	}
	if err := g.Remove(context.Background()); err != nil {
		t.Error(err)
	}
	if isDir(filepath.Join(l.cpu, name)) {
		t.Errorf("%s of the cpu hierarchy is still there", name)
	}
	free, err := create(l, name, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer free.Remove(context.Background())
	if l.cpu != l.registry && isDir(filepath.Join(l.cpu, name)) {
		t.Errorf("without a cap %s is in the cpu hierarchy", name)
	}
}

func TestNoHierarchy(t *testing.T) {
	if _, err := create(layout{}, "unum-test-none", 1); err == nil || !strings.Contains(err.Error(), "no cgroup hierarchy") {
		t.Errorf("err = %v", err)
	}
}

func TestClaim(t *testing.T) {
	for kind, l := range layouts(t) {
		t.Run(kind, func(t *testing.T) {
			name := fmt.Sprintf("unum-test-claim-%d", os.Getpid())
			g := open(l, name)
			defer g.Remove(context.Background())
			first, err := claim(l, name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := claim(l, name); !errors.Is(err, unum.ErrExists) {
				t.Errorf("claimed twice: %v", err)
			}
			if err := g.Remove(context.Background()); err != nil {
				t.Fatal(err)
			}
			second, err := claim(l, name)
			if err != nil {
				t.Fatalf("what was removed cannot be claimed: %v", err)
			}
			first.Close()
			if _, err := claim(l, name); !errors.Is(err, unum.ErrExists) {
				t.Errorf("the end of the first claim ended the second: %v", err)
			}
			second.Close()
			third, err := claim(l, name)
			if err != nil {
				t.Fatal(err)
			}
			third.Close()
		})
	}
}
