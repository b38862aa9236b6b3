package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
)

// world is the list of processes that a Kinds under test sees.
type world struct{ pids []int }

func newKinds(t *testing.T, w *world) *Kinds {
	k := New(Config{Env: &carry.Env{
		Node: "n1", Handle: func(string, unum.Handler) {}, Accept: func(string, unum.Acceptor) {},
		WorldPids: func() ([]int, error) { return w.pids, nil }, Deputy: func(int) bool { return false },
	}})
	t.Cleanup(func() { k.Close() })
	return k
}

// holder starts a process that holds f as descriptor 0 and does nothing.
func (w *world) holder(t *testing.T, f *os.File) *carry.Proc {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	cmd.Stdin = f
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	w.pids = append(w.pids, cmd.Process.Pid)
	return &carry.Proc{HostPid: cmd.Process.Pid, Pid: 65600}
}

// fdOf is what the daemon gathers of a descriptor.
func fdOf(t *testing.T, p *carry.Proc, n int) *carry.FD {
	t.Helper()
	dir := "/proc/" + strconv.Itoa(p.HostPid)
	fd := &carry.FD{Nums: []int{n}}
	if err := unix.Stat(fmt.Sprintf("%s/fd/%d", dir, n), &fd.Stat); err != nil {
		t.Fatal(err)
	}
	fd.Link, _ = os.Readlink(fmt.Sprintf("%s/fd/%d", dir, n))
	b, _ := os.ReadFile(fmt.Sprintf("%s/fdinfo/%d", dir, n))
	for _, l := range strings.Split(string(b), "\n") {
		if v, ok := strings.CutPrefix(l, "pos:\t"); ok {
			fd.Pos, _ = strconv.ParseInt(v, 10, 64)
		}
		if v, ok := strings.CutPrefix(l, "flags:\t"); ok {
			x, _ := strconv.ParseInt(v, 8, 64)
			fd.Flags = int(x)
		}
	}
	return fd
}

func claim(k *Kinds, p *carry.Proc, fd *carry.FD) (*carry.Desc, error) {
	for _, kind := range k.All() {
		if d, err := kind.Claim(context.Background(), p, fd); d != nil || err != nil {
			return d, err
		}
	}
	return nil, nil
}

func mustOpen(t *testing.T, name string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(name, flags, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestWhoCarriesWhat(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: kcmp of other processes")
	}
	name := filepath.Join(t.TempDir(), "f")
	for test, c := range map[string]struct {
		open func() *os.File
		kind string // "": stays home
		at   carry.OpenAt
	}{
		"null": {func() *os.File { return mustOpen(t, "/dev/null", os.O_RDWR) }, "device", carry.OpenAt{Path: "/dev/null", Flags: os.O_RDWR | unix.O_NOCTTY}},
		"kmsg": {func() *os.File { return mustOpen(t, "/dev/fuse", os.O_RDWR) }, "none", carry.OpenAt{}},
		"alone": {func() *os.File {
			f := mustOpen(t, name, os.O_RDWR|os.O_CREATE|os.O_TRUNC|os.O_APPEND)
			f.WriteString("12345")
			return f
		}, "path", carry.OpenAt{Path: name, Flags: os.O_RDWR | os.O_APPEND | unix.O_NOCTTY, Seek: 5}},
		"folder":     {func() *os.File { return mustOpen(t, "/usr", os.O_RDONLY) }, "path", carry.OpenAt{Path: "/usr", Flags: unix.O_NOCTTY}},
		"o_path":     {func() *os.File { return mustOpen(t, "/usr", unix.O_PATH) }, "path", carry.OpenAt{Path: "/usr", Flags: unix.O_PATH | unix.O_NOCTTY}},
		"own folder": {func() *os.File { return mustOpen(t, "/proc/self", os.O_RDONLY) }, "", carry.OpenAt{}},
		"deleted": {func() *os.File {
			f := mustOpen(t, name+"d", os.O_RDWR|os.O_CREATE)
			os.Remove(name + "d")
			return f
		}, "", carry.OpenAt{}},
		"replaced": {func() *os.File {
			f := mustOpen(t, name+"r", os.O_RDWR|os.O_CREATE)
			os.Remove(name + "r")
			mustOpen(t, name+"r", os.O_RDWR|os.O_CREATE)
			return f
		}, "", carry.OpenAt{}},
		"locked": {func() *os.File {
			f := mustOpen(t, name+"l", os.O_RDWR|os.O_CREATE)
			unix.Flock(int(f.Fd()), unix.LOCK_EX)
			return f
		}, "", carry.OpenAt{}},
	} {
		t.Run(test, func(t *testing.T) {
			w := &world{}
			k := newKinds(t, w)
			f := c.open()
			p := w.holder(t, f)
			f.Close()
			w.holder(t, mustOpen(t, "/dev/zero", os.O_RDONLY))
			fd := fdOf(t, p, 0)
			d, err := claim(k, p, fd)
			switch {
			case c.kind == "":
				if !errors.Is(err, unum.ErrStaysHome) {
					t.Errorf("claimed %v, error %v", d, err)
				}
				return
			case err != nil:
				t.Fatal(err)
			case c.kind == "none":
				if d != nil {
					t.Errorf("claimed by %s", d.Kind)
				}
				return
			case d == nil || d.Kind != c.kind:
				t.Fatalf("claimed %v", d)
			}
			for _, kind := range k.All() {
				if kind.Name() != d.Kind {
					continue
				}
				g, err := kind.Land(context.Background(), carry.Placement{}, d)
				if err != nil {
					t.Fatal(err)
				}
				if got := *g.Local().Open; got != c.at {
					t.Errorf("opens %+v, want %+v", got, c.at)
				}
				again, err := os.OpenFile(c.at.Path, c.at.Flags, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer again.Close()
				var st unix.Stat_t
				unix.Fstat(int(again.Fd()), &st)
				if err := Check(d, &st); err != nil {
					t.Error(err)
				}
				st.Ino++
				if err := Check(d, &st); d.Kind == "path" && !errors.Is(err, unum.ErrStaysHome) {
					t.Errorf("another file passed: %v", err)
				}
			}
		})
	}
}

// A description that any other process holds, under whatever number, is
// shared.
func TestSharedIsNotReopened(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: kcmp of other processes")
	}
	w := &world{}
	k := newKinds(t, w)
	f := mustOpen(t, filepath.Join(t.TempDir(), "f"), os.O_RDWR|os.O_CREATE)
	p := w.holder(t, f)
	fd := fdOf(t, p, 0)
	if alone, err := k.alone(p, fd); err != nil || !alone {
		t.Fatalf("alone: %v, %v", alone, err)
	}
	w.pids = append(w.pids, os.Getpid()) // which has it as another number
	if alone, err := k.alone(p, fd); err != nil || alone {
		t.Fatalf("shared: %v, %v", alone, err)
	}
	f.Close()
	if alone, err := k.alone(p, fd); err != nil || !alone {
		t.Fatalf("closed: %v, %v", alone, err)
	}
}

func BenchmarkAlone(b *testing.B) {
	w := &world{}
	k := New(Config{Env: &carry.Env{
		Handle: func(string, unum.Handler) {}, Accept: func(string, unum.Acceptor) {},
		WorldPids: func() ([]int, error) { return w.pids, nil },
	}})
	defer k.Close()
	for range 30 {
		cmd := exec.Command("sleep", "60")
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		w.pids = append(w.pids, cmd.Process.Pid)
	}
	cmd := exec.Command("sleep", "60")
	f, err := os.Open("/etc/passwd")
	if err != nil {
		b.Fatal(err)
	}
	cmd.Stdin = f
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	f.Close()
	b.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	p := &carry.Proc{HostPid: cmd.Process.Pid}
	for b.Loop() {
		if ok, err := k.alone(p, &carry.FD{Nums: []int{0}}); err != nil || !ok {
			b.Fatal(ok, err)
		}
	}
}
