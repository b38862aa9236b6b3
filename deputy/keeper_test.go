package deputy

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func (r *rig) keeper(s *Stub, dir string) *Keeper {
	r.Helper()
	k, err := NewKeeper(r.ctx, s, dir)
	if err != nil {
		r.Fatal(err)
	}
	return k
}

func pipeOf(t *testing.T) (in, out *os.File) {
	t.Helper()
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); out.Close() })
	return in, out
}

// What is kept survives the daemon, under any name, and only as long as it is
// kept.
func TestKeeper(t *testing.T) {
	r := newRig(t)
	dir := filepath.Join(t.TempDir(), "kept")
	k := r.keeper(r.stub, dir)
	names := []string{"pipe/1", "a name", "ü"}
	outs := map[string]*os.File{}
	for _, name := range names {
		in, out := pipeOf(t)
		if err := k.Keep(r.ctx, name, in); err != nil {
			t.Fatal(err)
		}
		in.Close()
		outs[name] = out
	}
	if err := k.Drop(r.ctx, "a name"); err != nil {
		t.Fatal(err)
	}
	if err := k.Drop(r.ctx, "a name"); err != nil {
		t.Errorf("dropped twice: %v", err)
	}
	if _, err := outs["a name"].Write([]byte("x")); err == nil {
		t.Error("the pipe that was dropped still has a reader")
	}

	r.die()
	r.daemon()
	s, err := r.reg.Adopt(r.pid, 1)
	if err != nil {
		t.Fatal(err)
	}
	r.serve()
	k = r.keeper(s, dir)
	for _, name := range names {
		f, err := k.Take(name)
		if name == "a name" {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("what was dropped: %v", err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		outs[name].WriteString(name)
		outs[name].Close()
		if b, err := io.ReadAll(f); string(b) != name || err != nil {
			t.Errorf("%s holds %q, %v", name, b, err)
		}
		f.Close()
	}
}

// A name that is kept again holds the new descriptor, and the old one is gone.
func TestKeepAgain(t *testing.T) {
	r := newRig(t)
	k := r.keeper(r.stub, filepath.Join(t.TempDir(), "kept"))
	in1, out1 := pipeOf(t)
	in2, out2 := pipeOf(t)
	for _, f := range []*os.File{in1, in2} {
		if err := k.Keep(r.ctx, "x", f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	r.run(r.stub, &Program{}) // the kernel closes the old one when the stub goes on
	if _, err := out1.Write([]byte("x")); err == nil {
		t.Error("the first one is still held")
	}
	if _, err := out2.Write([]byte("x")); err != nil {
		t.Errorf("the second one: %v", err)
	}
}

// A file that names a descriptor which the stub does not hold, or another one,
// is not believed: its writer died in between.
func TestKeeperBelievesNoLies(t *testing.T) {
	r := newRig(t)
	dir := filepath.Join(t.TempDir(), "kept")
	k := r.keeper(r.stub, dir)
	in, _ := pipeOf(t)
	if err := k.Keep(r.ctx, "true", in); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "true"))
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]string{"nothing": "77 8:1", "another": "3 8:1", "empty": "", "half": "3"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	k = r.keeper(r.stub, dir)
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != "true" {
		t.Errorf("left: %v, %v; the true one says %q", left, err, text)
	}
	if f, err := k.Take("true"); err != nil {
		t.Error(err)
	} else {
		f.Close()
	}
	if _, err := k.Take("another"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("another: %v", err)
	}
}
