package vmtest

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// modules returns the files of the named kernel modules and of all that they
// depend on, each after what it needs: the order in which insmod takes them.
// A name that is built into the kernel contributes nothing. The package of the
// kernel has no modules.dep (depmod makes it at installation), so each
// module's own .modinfo is read.
func modules(dir string, names []string) ([]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".ko") {
			files[moduleName(path)] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	for _, line := range strings.Fields(string(builtin)) {
		if _, ok := files[moduleName(line)]; !ok {
			files[moduleName(line)] = ""
		}
	}
	var order []string
	seen := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		name = moduleName(name)
		if seen[name] {
			return nil
		}
		seen[name] = true
		path, ok := files[name]
		if !ok {
			return fmt.Errorf("the kernel has no module %s", name)
		}
		if path == "" {
			return nil
		}
		deps, err := moduleDeps(path)
		if err != nil {
			return err
		}
		for _, d := range deps {
			if err := add(d); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		order = append(order, path)
		return nil
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

func moduleName(path string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(path), ".ko"), "-", "_")
}

// moduleDeps reads the "depends=" line of a module, and its soft "pre:" ones,
// which init cannot load later by itself.
func moduleDeps(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("%s: no .modinfo", path)
	}
	data, err := s.Data()
	if err != nil {
		return nil, err
	}
	var deps []string
	for _, line := range bytes.Split(data, []byte{0}) {
		if v, ok := strings.CutPrefix(string(line), "depends="); ok && v != "" {
			deps = append(deps, strings.Split(v, ",")...)
		}
	}
	return deps, nil
}
