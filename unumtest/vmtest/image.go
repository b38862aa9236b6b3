package vmtest

import (
	"compress/gzip"
	"debug/elf"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

//go:embed init.sh
var initScript []byte

// Image is the content of a machine's root. The zero value is empty; methods
// that add remember the first error, which Write returns.
type Image struct {
	files   map[string]entry // by path without the leading slash
	modules []string
	err     error
}

type entry struct {
	mode fs.FileMode
	data []byte // of a file
	from string // or the file to copy
	link string // or the target of a symbolic link
}

func (im *Image) put(name string, e entry) {
	if im.files == nil {
		im.files = map[string]entry{}
	}
	name = strings.TrimPrefix(filepath.Clean(name), "/")
	if _, ok := im.files[name]; ok {
		return
	}
	// Where the host has a merged /usr, so has the image.
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		if strings.HasPrefix(name, d+"/") {
			name = "usr/" + name
		}
	}
	im.files[name] = e
}

// Data adds a file with this content.
func (im *Image) Data(name string, mode fs.FileMode, data []byte) {
	im.put(name, entry{mode: mode, data: data})
}

// Copy adds a file of this machine, following symbolic links, under name.
func (im *Image) Copy(name, from string) {
	fi, err := os.Stat(from)
	if err != nil {
		im.fail(err)
		return
	}
	im.put(name, entry{mode: fi.Mode(), from: from})
}

// Link adds a symbolic link.
func (im *Image) Link(name, target string) { im.put(name, entry{link: target}) }

// Tree adds a directory of this machine with all that is in it.
func (im *Image) Tree(name, from string) {
	im.fail(filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(from, path)
		if d.Type() == fs.ModeSymlink {
			target, err := os.Readlink(path)
			im.Link(filepath.Join(name, rel), target)
			return err
		}
		im.Copy(filepath.Join(name, rel), path)
		return nil
	}))
}

// Programs adds programs of this machine, found on the PATH or named by their
// path, with the libraries that they load.
func (im *Image) Programs(names ...string) {
	for _, name := range names {
		path, err := lookPath(name)
		if err != nil {
			im.fail(err)
			continue
		}
		im.program(path)
	}
}

func lookPath(name string) (string, error) {
	if strings.HasPrefix(name, "/") {
		return name, nil
	}
	for _, d := range []string{"/usr/bin", "/usr/sbin", "/usr/local/bin"} {
		if fi, err := os.Stat(filepath.Join(d, name)); err == nil && fi.Mode()&0o111 != 0 {
			return filepath.Join(d, name), nil
		}
	}
	return "", fmt.Errorf("no program %s on this machine", name)
}

func (im *Image) program(path string) {
	im.Copy(path, path)
	f, err := elf.Open(path)
	if err != nil {
		return // a script
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b := make([]byte, p.Filesz)
			p.ReadAt(b, 0)
			im.library(strings.TrimRight(string(b), "\x00"))
		}
	}
	im.needs(f)
}

// needs adds the libraries that an ELF file names.
func (im *Image) needs(f *elf.File) {
	libs, err := f.ImportedLibraries()
	if err != nil {
		return
	}
	for _, lib := range libs {
		found := false
		for _, d := range []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib"} {
			if _, err := os.Stat(filepath.Join(d, lib)); err == nil {
				im.library(filepath.Join(d, lib))
				found = true
				break
			}
		}
		if !found {
			im.fail(fmt.Errorf("no library %s on this machine", lib))
		}
	}
}

func (im *Image) library(path string) {
	if _, ok := im.files["usr"+path]; ok {
		return
	}
	if _, ok := im.files[strings.TrimPrefix(path, "/")]; ok {
		return
	}
	im.Copy(path, path)
	if f, err := elf.Open(path); err == nil {
		defer f.Close()
		im.needs(f)
	}
}

// Modules adds kernel modules, to be loaded before the first command.
func (im *Image) Modules(names ...string) { im.modules = append(im.modules, names...) }

func (im *Image) fail(err error) { im.err = errors.Join(im.err, err) }

// write makes the initramfs at path.
func (im *Image) write(path string, kit *Kit, cmds []Command) error {
	all := &Image{files: map[string]entry{}, err: im.err}
	for n, e := range im.files {
		all.files[n] = e
	}
	all.Programs(kit.Busybox)
	all.Data("init", 0o755, initScript)
	order, err := modules(kit.Modules, im.modules)
	if err != nil {
		return err
	}
	for i, ko := range order {
		all.Copy(fmt.Sprintf("vm/modules/%03d-%s", i, filepath.Base(ko)), ko)
	}
	for i, c := range cmds {
		all.Data(fmt.Sprintf("vm/cmd/%04d", i), 0o755, []byte(c.Script))
		all.Data(fmt.Sprintf("vm/timeout/%04d", i), 0o644, fmt.Appendln(nil, int(c.Timeout.Seconds())))
	}
	if all.err != nil {
		return all.err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	z, _ := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err := all.archive(&cpio{w: z}); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	return f.Close()
}

// archive writes directories before what is in them.
func (im *Image) archive(c *cpio) error {
	for name, target := range map[string]string{"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"} {
		im.files[name] = entry{link: target}
	}
	dirs := map[string]bool{}
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "root", "etc", "var/tmp", "new", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "home"} {
		dirs[d] = true
	}
	var names []string
	for n := range im.files {
		names = append(names, n)
		dirs[filepath.Dir(n)] = true
	}
	for d := range dirs {
		for ; d != "."; d = filepath.Dir(d) {
			dirs[d] = true
		}
	}
	delete(dirs, ".")
	for d := range dirs {
		names = append(names, d)
	}
	sort.Strings(names)
	for i, n := range names {
		if i > 0 && n == names[i-1] {
			continue
		}
		e, file := im.files[n]
		switch {
		case !file && (n == "tmp" || n == "var/tmp"):
			c.dir(n, 0o777|fs.ModeSticky)
		case !file:
			c.dir(n, 0o755)
		case e.link != "":
			c.symlink(n, e.link)
		case e.from != "":
			data, err := os.ReadFile(e.from)
			if err != nil {
				return err
			}
			c.file(n, e.mode, data)
		default:
			c.file(n, e.mode, e.data)
		}
	}
	c.char("dev/console", 0o600, 5, 1)
	return c.close()
}
