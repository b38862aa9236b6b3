package unumtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// Source returns the folder with Debian's source of a package, fetched by
// apt-get source once. It uses a copy of the machine's own sources with
// deb-src in place of deb, and lists and archives of its own, so that nothing
// of the machine's apt changes.
func Source(pkg string) (string, error) {
	cache := "/var/cache/unum-test"
	if os.Getuid() != 0 {
		d, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		cache = filepath.Join(d, "unum-test")
	}
	dir := filepath.Join(cache, pkg)
	if m, _ := filepath.Glob(dir + "/*.dsc"); len(m) > 0 {
		return dir, nil
	}
	tmp, err := os.MkdirTemp("", "unum-apt-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	for _, d := range []string{"etc", "lists/partial", "cache/archives/partial", "src"} {
		if err := os.MkdirAll(filepath.Join(tmp, d), 0o755); err != nil {
			return "", err
		}
	}
	if err := copySources(filepath.Join(tmp, "etc")); err != nil {
		return "", err
	}
	apt := func(args ...string) error {
		args = append([]string{
			"-q", "-o", "Dir::Etc::sourcelist=/dev/null", "-o", "Dir::Etc::sourceparts=" + tmp + "/etc",
			"-o", "Dir::State::lists=" + tmp + "/lists", "-o", "Dir::Cache=" + tmp + "/cache",
			"-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2",
		}, args...)
		cmd := exec.Command("apt-get", args...)
		cmd.Dir = tmp + "/src"
		if out, err := cmd.CombinedOutput(); err != nil {
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			return fmt.Errorf("apt-get %s: %w: %s", args[len(args)-1], err, lines[len(lines)-1])
		}
		return nil
	}
	if err := apt("update"); err != nil {
		return "", err
	}
	if err := apt("source", "--download-only", pkg); err != nil {
		return "", err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	// Complete or not there at all.
	if out, err := exec.Command("cp", "-r", tmp+"/src", dir+".new").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return dir, os.Rename(dir+".new", dir)
}

// copySources copies the machine's package sources, both formats, as sources
// of source packages.
func copySources(to string) error {
	files, _ := filepath.Glob("/etc/apt/sources.list.d/*")
	files = append(files, "/etc/apt/sources.list")
	n := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		var out string
		switch filepath.Ext(f) {
		case ".sources":
			out = regexp.MustCompile(`(?m)^Types:.*$`).ReplaceAllString(string(b), "Types: deb-src")
		case ".list":
			out = regexp.MustCompile(`(?m)^deb\s`).ReplaceAllString(string(b), "deb-src ")
		default:
			continue
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(f)), []byte(out), 0o644); err != nil {
			return err
		}
		n++
	}
	if n == 0 {
		return fmt.Errorf("the machine has no package sources in /etc/apt")
	}
	return nil
}
