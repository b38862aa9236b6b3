package main

import (
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"first"

	"unum"
)

// The quick parser of `unum run` agrees with the command line library's on all
// that it accepts.
func TestParseRun(t *testing.T) {
	for _, line := range []string{
		"true", "-n n2 true", "-nn2 true", "-n=n2 true", "--node n2 -- true -x", "--node=n2 true --node n3",
		"-e A=b -e C=d=e -w /x true", "--env=A=b --workdir=/ true", "-- -n", "-w /x -- true -- y",
		"-d true", "-u root true", "--json true", "-n", "", "--", "-h", "-", "- x",
	} {
		args := strings.Fields(line)
		got, ok := first.Parse(args)

		var want first.Options
		cmd := &cobra.Command{}
		*cmd = *runCommand()
		err := cmd.ParseFlags(args)
		want.Argv = cmd.Flags().Args()
		want.Node, _ = cmd.Flags().GetString("node")
		want.Dir, _ = cmd.Flags().GetString("workdir")
		want.Env, _ = cmd.Flags().GetStringArray("env")
		if len(want.Env) == 0 {
			want.Env = nil
		}
		detach, _ := cmd.Flags().GetBool("detach")
		user, _ := cmd.Flags().GetString("user")
		switch {
		case !ok:
			if err == nil && len(want.Argv) > 0 && !detach && user == "" {
				t.Errorf("%q: left to the library for no reason", line)
			}
		case err != nil || detach || user != "":
			t.Errorf("%q: accepted, but %v", line, err)
		case !reflect.DeepEqual(got, want):
			t.Errorf("%q: %+v, the library says %+v", line, got, want)
		}
	}
}

func TestEnv(t *testing.T) {
	t.Setenv("HERE", "yes")
	got := first.Env([]string{"A=1", "UNUM_NODE=n9", "B=2"}, first.Options{Node: "n2", Env: []string{"A=3", "HERE", "NOT_THERE"}})
	want := []string{"B=2", "UNUM_NODE=n2", "A=3", "HERE=yes"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := first.Env(nil, first.Options{}); !reflect.DeepEqual(got, []string{"UNUM_NODE=auto"}) {
		t.Errorf("%q", got)
	}
}

// A refusal is one line that says what failed, where and what to do.
func TestFailures(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
		line string
	}{
		{commandError("x", fs.ErrNotExist), 127, "unum: x: command not found"},
		{commandError("./x", &unum.Error{Op: "run", Err: syscall.ENOENT}), 127, "unum: ./x: run: no such file or directory"},
		{commandError("x", syscall.EACCES), 126, "unum: x: permission denied"},
		{commandError("x", syscall.ENOEXEC), 126, "unum: x: exec format error"},
		{commandError("x", &unum.Error{Op: "run", Node: "n9", Err: unum.ErrNoNode}), 125, "unum: run on n9: no such node"},
		{&unum.Error{Op: "join", Node: "n65", Err: unum.ErrNoIndex}, 125,
			"unum: join on n65: all 64 node indexes are in use; a cluster has at most 64 nodes: remove one first"},
		{&unum.Error{Op: "listen", Path: "10.77.0.1:7077", Err: syscall.EADDRINUSE}, 125,
			"unum: listen: 10.77.0.1:7077: address already in use; another program has the port: end it, or choose another in the node's configuration"},
		{&unum.Error{Op: "write", Path: "/run/unum/state", Err: syscall.ENOSPC}, 125,
			"unum: write: /run/unum/state: no space left on device; make room there"},
		{&unum.Error{Op: "join", Node: "n2", Err: unum.ErrVersion}, 125,
			"unum: join on n2: versions differ; all nodes, and the command line, must be of one version (`unum version`)"},
		{errors.New("two\nlines \x1b[31m"), 125, "unum: two?lines ?[31m"},
	} {
		if got := line(c.err); got != c.line {
			t.Errorf("%s\nwant %s", got, c.line)
		}
		code := exitFailed
		var ce *codeError
		if errors.As(c.err, &ce) {
			code = ce.code
		}
		if code != c.code {
			t.Errorf("%v: code %d, want %d", c.err, code, c.code)
		}
	}
}

func TestFormats(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 999: "999", 1 << 20: "1.0M", 8 << 30: "8.0G", 100 << 20: "100M", 1000 << 10: "1.0M"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %s, want %s", n, got, want)
		}
	}
	now := time.Now()
	for ago, want := range map[time.Duration]string{5 * time.Second: "5s", 65 * time.Second: "1m05s", 3*time.Hour + time.Minute: "3h01m", 50 * time.Hour: "2d02h"} {
		if got := age(now.Add(-ago)); got != want {
			t.Errorf("age %v = %s, want %s", ago, got, want)
		}
	}
}

func TestInsideRoot(t *testing.T) {
	for _, c := range [][3]string{{"/", "/tmp/x", "/tmp/x"}, {"/srv/t", "/srv/t/a", "/a"}, {"/srv/t", "/srv/t", "/"}, {"/srv/t", "/srv/tt", "/"}, {"/srv/t", "/", "/"}} {
		if got := insideRoot(c[0], c[1]); got != c[2] {
			t.Errorf("%s in %s is %s, want %s", c[1], c[0], got, c[2])
		}
	}
}

// Every command has help with an example, and every table prints JSON.
func TestCommands(t *testing.T) {
	root := rootCommand()
	for _, c := range root.Commands() {
		if _, helper := helpers[c.Name()]; helper || c.Hidden {
			continue
		}
		if c.Short == "" || c.Example == "" && c.Name() != "version" {
			t.Errorf("%s has no help or no example", c.Name())
		}
	}
	for _, name := range []string{"nodes", "ps", "why", "doctor", "version"} {
		c, _, err := root.Find([]string{name})
		if err != nil || c.Flags().Lookup("json") == nil {
			t.Errorf("%s has no --json: %v", name, err)
		}
	}
	if got := fmt.Sprint(root.Version); got != unum.Version {
		t.Error(got)
	}
}
