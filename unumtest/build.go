package unumtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

var buildOnce = sync.OnceValues(func() (string, error) {
	if b := os.Getenv("UNUM_BIN"); b != "" {
		return b, nil
	}
	// One place for all test binaries of a user: the build cache makes it
	// cheap, and nothing has to be removed.
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = os.TempDir()
	}
	dir = filepath.Join(dir, "unum-test", "bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	tmp, err := os.CreateTemp(dir, "unum-*")
	if err != nil {
		return "", err
	}
	tmp.Close()
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", "-s -w -E first.entry", // as make build does
		"-o", tmp.Name(), "unum/cmd/unum")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		os.Remove(tmp.Name())
		return "", fmt.Errorf("build unum: %w\n%s", err, out)
	}
	bin := filepath.Join(dir, "unum")
	if err := os.Rename(tmp.Name(), bin); err != nil {
		return "", err
	}
	return bin, nil
})

// Build returns the path of the unum binary, building it once.
func Build() (string, error) { return buildOnce() }
