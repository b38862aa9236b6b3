package behave

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Prepare makes the base directory of a run of the suite: the helpers, built
// here. It wants gcc for the ones in C.
func Prepare(base string) error {
	bin := filepath.Join(base, "bin")
	for _, d := range []string{bin, filepath.Join(base, "w"), filepath.Join(base, "scripts")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if _, err := exec.LookPath("gcc"); err != nil {
		return fmt.Errorf("the behaviour suite needs a C compiler for its helper: apt-get install gcc libc6-dev")
	}
	src, err := testdata.ReadFile("testdata/bt.c")
	if err != nil {
		return err
	}
	c := filepath.Join(base, "bt.c")
	if err := os.WriteFile(c, src, 0o644); err != nil {
		return err
	}
	run := func(env []string, name string, args ...string) error {
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
		}
		return nil
	}
	bt := filepath.Join(bin, "bt")
	if err := run(nil, "gcc", "-O1", "-w", "-pthread", "-o", bt, c); err != nil {
		return err
	}
	if err := run(nil, "gcc", "-O1", "-w", "-pthread", "-static", "-o", bt+"-static", c); err != nil {
		return err
	}
	if err := run([]string{"CGO_ENABLED=0"}, "go", "build", "-o", filepath.Join(bin, "static-hello"), "unum/unumtest/behave/helpers/static-hello"); err != nil {
		return err
	}
	b, err := os.ReadFile(bt)
	if err != nil {
		return err
	}
	for name, mode := range map[string]os.FileMode{"suid": 0o755 | os.ModeSetuid, "sgid": 0o755 | os.ModeSetgid, "fcap": 0o755} {
		p := filepath.Join(bin, name)
		if err := os.WriteFile(p, b, 0o755); err != nil {
			return err
		}
		gid := 0
		if name == "sgid" {
			gid = 1
		}
		if err := os.Chown(p, 0, gid); err != nil {
			return err
		}
		if err := os.Chmod(p, mode); err != nil {
			return err
		}
	}
	// cap_net_bind_service, permitted and effective: struct vfs_cap_data,
	// revision 2, of include/uapi/linux/capability.h.
	cap := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	return setxattr(filepath.Join(bin, "fcap"), "security.capability", cap)
}

func setxattr(path, name string, value []byte) error {
	if err := unix.Setxattr(path, name, value, 0); err != nil {
		return &os.PathError{Op: "setxattr", Path: path, Err: err}
	}
	return nil
}
