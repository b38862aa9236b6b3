package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"unum/bench/probe"
)

// someObjects is a part of liblzma that compiles in a few seconds: what the
// quick run builds, and what is built again and again to see small
// differences.
var someObjects = objects("common", "block_decoder", "block_encoder", "block_header_encoder", "common", "easy_encoder",
	"filter_common", "filter_decoder", "filter_encoder", "index", "index_decoder", "index_encoder", "index_hash",
	"stream_decoder", "stream_encoder", "stream_flags_common", "stream_flags_decoder", "vli_encoder", "vli_size",
	"alone_decoder", "alone_encoder", "auto_decoder", "outqueue", "easy_preset", "hardware_physmem")

func objects(dir string, names ...string) []string {
	var o []string
	for _, n := range names {
		o = append(o, "liblzma_la-"+n+".lo")
	}
	return o
}

// source returns the upstream archive of Debian's xz-utils, downloaded by
// `apt-get source` with a temporary copy of the machine's own list to which
// the sources are added.
func (b *bench) source(ctx context.Context) (string, error) {
	const glob = "xz-utils_*.orig.tar.xz"
	find := func() string {
		found, _ := filepath.Glob(filepath.Join(b.opt.Cache, glob))
		if len(found) == 0 {
			return ""
		}
		return found[len(found)-1]
	}
	if f := find(); f != "" {
		return f, nil
	}
	if err := install(ctx, map[string]string{"/usr/bin/gcc": "gcc", "/usr/bin/make": "make", "/usr/bin/xz": "xz-utils"}); err != nil {
		return "", err
	}
	lists := filepath.Join(b.dir, "apt")
	parts := filepath.Join(lists, "parts")
	for _, d := range []string{parts, filepath.Join(lists, "lists", "partial")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return "", err
		}
	}
	if err := copyLists(parts); err != nil {
		return "", err
	}
	opts := []string{"-q", "-o", "Dir::Etc::SourceList=/dev/null", "-o", "Dir::Etc::SourceParts=" + parts,
		"-o", "Dir::State::Lists=" + filepath.Join(lists, "lists"), "-o", "APT::Sandbox::User=root"}
	if out, err := apt(ctx, b.opt.Cache, append(opts, "update")...); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	out, err := apt(ctx, b.opt.Cache, append(opts, "source", "--download-only", "xz-utils")...)
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	if f := find(); f != "" {
		return f, nil
	}
	return "", fmt.Errorf("apt-get source left no %s: %s", glob, out)
}

// copyLists copies the machine's package lists into parts, in both of apt's
// formats, with their sources turned on.
func copyLists(parts string) error {
	files, _ := filepath.Glob("/etc/apt/sources.list.d/*.list")
	more, _ := filepath.Glob("/etc/apt/sources.list.d/*.sources")
	files = append(append(files, more...), "/etc/apt/sources.list")
	for _, f := range files {
		data, err := os.ReadFile(f)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(parts, filepath.Base(f)), []byte(withSources(string(data), filepath.Ext(f))), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// withSources turns on the sources in one list.
func withSources(text, format string) string {
	lines := strings.Split(text, "\n")
	var out []string
	for _, l := range lines {
		out = append(out, l)
		switch {
		case format == ".sources" && strings.HasPrefix(l, "Types:") && !strings.Contains(l, "deb-src"):
			out[len(out)-1] = l + " deb-src"
		case format != ".sources" && strings.HasPrefix(l, "deb "):
			out = append(out, "deb-src "+strings.TrimPrefix(l, "deb "))
		}
	}
	return strings.Join(out, "\n")
}

// unpack makes a fresh source tree at dir.
func (b *bench) unpack(ctx context.Context, dir string) error {
	archive, err := b.source(ctx)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "tar", "-xf", archive, "-C", dir, "--strip-components=1", "--no-same-owner").CombinedOutput()
	if err != nil {
		return fmt.Errorf("tar: %w: %s", err, out)
	}
	return nil
}

// configured returns a tree that was configured natively and whose generated
// headers stand, once for the run.
func (b *bench) configured(ctx context.Context, nat *place) (string, error) {
	dir := filepath.Join(b.dir, "xz-local")
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := b.unpack(ctx, dir); err != nil {
		return "", err
	}
	_, err := b.timed(ctx, nat, dir, "./configure", "-q", "--disable-nls")
	return dir, err
}

// timed runs a command at a place, by the place's own policy, and returns how
// long it took.
func (b *bench) timed(ctx context.Context, at *place, dir string, argv ...string) (time.Duration, error) {
	r, err := at.do(ctx, 10*time.Minute, probe.Request{Op: probe.OpRun, Dir: dir, Env: []string{"UNUM_NODE=auto"}, Argv: argv})
	if err != nil {
		return 0, err
	}
	if r.Status != 0 {
		return 0, fmt.Errorf("%s in %s: status %d: %s", argv[0], at.name, r.Status, r.Out)
	}
	return time.Duration(r.NS[0]), nil
}
