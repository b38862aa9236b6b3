package vmtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Kit is what a machine is made of: a kernel of Debian's, qemu, busybox.
type Kit struct {
	Kernel  string // vmlinuz
	Release string // as uname -r says it
	Modules string // /lib/modules/RELEASE of the kernel's package
	Qemu    string
	Busybox string // static
}

// Package is the one that pulls in Debian 12's kernel for virtual machines.
const Package = "linux-image-cloud-amd64"

// Find returns the kit that Fetch left in the cache directory, or an error
// that says what is missing.
func Find(cache string) (*Kit, error) {
	k := &Kit{}
	var err error
	if k.Qemu, err = exec.LookPath("qemu-system-x86_64"); err != nil {
		return nil, errors.New("qemu-system-x86_64 is missing: apt-get install qemu-system-x86")
	}
	if k.Busybox, err = exec.LookPath("busybox"); err != nil {
		return nil, errors.New("busybox is missing: apt-get install busybox-static")
	}
	kernels, _ := filepath.Glob(filepath.Join(cache, "kernel", "boot", "vmlinuz-*"))
	if len(kernels) == 0 {
		return nil, fmt.Errorf("no kernel in %s: Fetch downloads it", cache)
	}
	k.Kernel = kernels[len(kernels)-1]
	k.Release = strings.TrimPrefix(filepath.Base(k.Kernel), "vmlinuz-")
	k.Modules = filepath.Join(cache, "kernel", "lib", "modules", k.Release)
	if _, err := os.Stat(k.Modules); err != nil {
		return nil, err
	}
	return k, nil
}

// Fetch makes what Find finds: it installs qemu and busybox by apt-get where
// they are missing, and downloads and unpacks the kernel's package, which is
// not installed.
func Fetch(ctx context.Context, cache string) (*Kit, error) {
	if k, err := Find(cache); err == nil {
		return k, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	var missing []string
	for prog, pkg := range map[string]string{"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static"} {
		if _, err := exec.LookPath(prog); err != nil {
			missing = append(missing, pkg)
		}
	}
	if len(missing) > 0 {
		args := append([]string{"install", "-y", "--no-install-recommends"}, missing...)
		if err := apt(ctx, cache, args...); err != nil {
			return nil, err
		}
	}
	if kernels, _ := filepath.Glob(filepath.Join(cache, "kernel", "boot", "vmlinuz-*")); len(kernels) == 0 {
		if err := fetchKernel(ctx, cache); err != nil {
			return nil, err
		}
	}
	return Find(cache)
}

func fetchKernel(ctx context.Context, cache string) error {
	image, err := dependency(ctx)
	if err != nil {
		if err := apt(ctx, cache, "update"); err != nil {
			return err
		}
		if image, err = dependency(ctx); err != nil {
			return err
		}
	}
	if err := apt(ctx, cache, "download", image); err != nil {
		return err
	}
	debs, _ := filepath.Glob(filepath.Join(cache, image+"_*.deb"))
	if len(debs) == 0 {
		return fmt.Errorf("apt-get download %s left no package", image)
	}
	// Unpacked beside and renamed: a broken-off run leaves no half kernel.
	tmp := filepath.Join(cache, "kernel.new")
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", debs[len(debs)-1], tmp).CombinedOutput(); err != nil {
		return fmt.Errorf("dpkg-deb: %w: %s", err, out)
	}
	return os.Rename(tmp, filepath.Join(cache, "kernel"))
}

// dependency returns the package of the kernel that Package stands for.
func dependency(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-cache", "depends", Package).Output()
	if err != nil {
		return "", fmt.Errorf("apt-cache depends %s: %w", Package, err)
	}
	for _, line := range strings.Split(string(out), "\n") {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); ok {
			return "linux-image-" + p, nil
		}
	}
	return "", fmt.Errorf("%s names no kernel: apt-get update", Package)
}

func apt(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-q"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}
