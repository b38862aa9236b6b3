package vmtest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Command is one script that a machine runs, with its interpreter in the first
// line (`#!/bin/sh`, which is added where there is none).
type Command struct {
	Name    string
	Script  string
	Timeout time.Duration // by the machine's clock, killed after that; 0 means a minute
}

// Result is what became of a command. Output is its standard output and error
// together. A command that the machine did not come to has Status -1.
type Result struct {
	Name   string
	Status int
	Output string
}

// Config describes a machine of one processor. The zero value has 2 GiB.
//
// Its clock counts the instructions that it has executed, two nanoseconds for
// each, and jumps over what it would sleep: so the machine is always equally
// fast by its own clock, however little of the host it gets, and its deadlines
// and leases mean the same on a loaded host. Several processors are too slow
// that way: they take turns, and spin for each other.
type Config struct {
	Memory  int       // MiB
	Append  string    // more kernel parameters
	Console io.Writer // gets the first serial line; nil discards
}

// Run boots the image, runs the commands in it and powers it off. The results
// are in the order of the commands. The error says that the machine did not
// end by itself; results that came before are returned all the same, and the
// error has the end of the console's output.
func (k *Kit) Run(ctx context.Context, cfg Config, im *Image, cmds []Command) ([]Result, error) {
	if cfg.Memory == 0 {
		cfg.Memory = 2048
	}
	cmds = append([]Command(nil), cmds...)
	results := make([]Result, len(cmds))
	for i := range cmds {
		if cmds[i].Timeout == 0 {
			cmds[i].Timeout = time.Minute
		}
		if !strings.HasPrefix(cmds[i].Script, "#!") {
			cmds[i].Script = "#!/bin/sh\n" + cmds[i].Script
		}
		results[i] = Result{Name: cmds[i].Name, Status: -1}
	}
	dir, err := os.MkdirTemp("", "vmtest")
	if err != nil {
		return results, err
	}
	defer os.RemoveAll(dir)
	initrd := filepath.Join(dir, "initrd")
	if err := im.write(initrd, k, cmds); err != nil {
		return results, err
	}
	report := filepath.Join(dir, "report")
	var console tail
	var w io.Writer = &console
	if cfg.Console != nil {
		w = io.MultiWriter(&console, cfg.Console)
	}
	cmd := exec.CommandContext(ctx, k.Qemu,
		"-accel", "tcg,thread=single", "-icount", "shift=1,sleep=off", "-cpu", "max", "-smp", "1", "-m", strconv.Itoa(cfg.Memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", k.Kernel, "-initrd", initrd,
		"-append", strings.TrimSpace("console=ttyS0 edd=off panic=-1 loglevel=4 mitigations=off "+cfg.Append),
		"-serial", "stdio", "-serial", "file:"+report)
	cmd.Stdout, cmd.Stderr = w, w
	cmd.WaitDelay = time.Second
	runErr := cmd.Run()
	data, err := os.ReadFile(report)
	if err != nil {
		data = nil
	}
	done := parse(data, results)
	if done {
		return results, nil
	}
	if runErr == nil {
		runErr = ctx.Err()
	}
	return results, fmt.Errorf("the machine did not come to its end: %v; its console ends with\n%s", runErr, console.String())
}

// parse reads the report of init.sh: "vmtest N STATUS LENGTH", then so many
// bytes. It says whether the report is complete.
func parse(data []byte, results []Result) bool {
	r := bufio.NewReader(bytes.NewReader(data))
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return false
		}
		var name string
		var status, length int
		if _, err := fmt.Sscanf(line, "vmtest %s %d %d", &name, &status, &length); err != nil {
			continue // what a driver said on the line before it was ours
		}
		if name == "end" {
			return true
		}
		out := make([]byte, length)
		if _, err := io.ReadFull(r, out); err != nil {
			return false
		}
		if i, err := strconv.Atoi(name); err == nil && i < len(results) {
			results[i].Status, results[i].Output = status, string(out)
		}
	}
}

// tail keeps the end of what is written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > 8192 {
		t.b = append(t.b[:0], t.b[len(t.b)-4096:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return strings.ReplaceAll(string(t.b), "\r", "") }
