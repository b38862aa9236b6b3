package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// install installs the Debian packages of the programs that are missing.
// files maps a program's path to its package.
func install(ctx context.Context, files map[string]string) error {
	var pkgs []string
	for file, pkg := range files {
		if _, err := os.Stat(file); err != nil {
			pkgs = append(pkgs, pkg)
		}
	}
	if len(pkgs) == 0 {
		return nil
	}
	slices.Sort(pkgs)
	pkgs = slices.Compact(pkgs)
	args := append([]string{"install", "-y", "-q", "--no-install-recommends"}, pkgs...)
	out, err := apt(ctx, "", args...)
	if err != nil {
		if _, err := apt(ctx, "", "update", "-q"); err != nil {
			return err
		}
		out, err = apt(ctx, "", args...)
	}
	if err != nil {
		return fmt.Errorf("%s is missing and cannot be installed: %w: %s", strings.Join(pkgs, ", "), err, out)
	}
	return nil
}

func apt(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("apt-get %s: %w", args[0], err)
	}
	return out, err
}
