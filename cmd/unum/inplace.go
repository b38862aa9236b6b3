package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"unum"
	"unum/ctl"
)

// runOptions are the flags of `unum run`.
type runOptions struct {
	node   string
	detach bool
	user   string
	dir    string
	env    []string
	argv   []string
}

// runInPlaceFast handles the plain `unum run` inside a world before anything
// of the command line library is touched: it is on the way of every job of a
// script. It returns if there is anything it does not handle.
func runInPlaceFast(args []string) {
	if len(args) < 2 || args[0] != "run" || os.Getenv("UNUM_CLUSTER") != "" || !ctl.Inside() {
		return
	}
	o, ok := parseRun(args[1:])
	if !ok {
		return
	}
	os.Exit(fail(runInPlace(context.Background(), o)))
}

// parseRun understands -n, -w, -e and their long names as pflag does. ok is
// false if there is anything else.
func parseRun(args []string) (o runOptions, ok bool) {
	for len(args) > 0 {
		a := args[0]
		if a == "--" {
			args = args[1:]
			break
		}
		if len(a) < 2 || a[0] != '-' {
			break
		}
		var name, val string
		hasVal := false
		if strings.HasPrefix(a, "--") {
			name, val, hasVal = strings.Cut(a[2:], "=")
		} else {
			name, val, hasVal = a[1:2], strings.TrimPrefix(a[2:], "="), len(a) > 2
		}
		args = args[1:]
		if !hasVal {
			if len(args) == 0 {
				return o, false
			}
			val, args = args[0], args[1:]
		}
		switch name {
		case "n", "node":
			o.node = val
		case "w", "workdir":
			o.dir = val
		case "e", "env":
			o.env = append(o.env, val)
		default:
			return o, false
		}
	}
	o.argv = args
	return o, len(args) > 0
}

// runInPlace becomes the command: the exec carries UNUM_NODE, and the world
// places it. It returns only with an error.
func runInPlace(ctx context.Context, o runOptions) error {
	if err := checkNode(ctx, o.node); err != nil {
		return err
	}
	env := commandEnv(os.Environ(), o)
	if o.user != "" {
		var err error
		if env, err = becomeUser(o.user, env); err != nil {
			return err
		}
	}
	if o.dir != "" {
		if err := os.Chdir(o.dir); err != nil {
			return err
		}
	}
	path, err := lookPath(o.argv[0], env)
	if err != nil {
		return err
	}
	err = syscall.Exec(path, o.argv, env)
	if err == syscall.ENOEXEC {
		// No #! line: as a shell would.
		err = syscall.Exec("/bin/sh", append([]string{"sh", path}, o.argv[1:]...), env)
	}
	if e := commandError(o.argv[0], err); e != err {
		return e
	}
	return fmt.Errorf("%s: %w", o.argv[0], err)
}

// checkNode refuses a node that cannot take anything. Any daemon knows.
func checkNode(ctx context.Context, node string) error {
	switch node {
	case "", "here", "elsewhere", "auto":
		return nil
	}
	cl, err := dial()
	if err != nil {
		return err
	}
	nodes, err := cl.Nodes(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, n := range nodes {
		if string(n.ID) == node {
			if n.State == unum.Up || n.State == unum.Suspect {
				return nil
			}
			return fmt.Errorf("run on %s: the node is %s (`unum nodes`)", node, n.State)
		}
		names = append(names, string(n.ID))
	}
	return fmt.Errorf("run on %s: %w (there are: %s)", node, unum.ErrNoNode, strings.Join(names, ", "))
}

// commandEnv is the environment of a command: the caller's, what -e says, and
// where it may run.
func commandEnv(env []string, o runOptions) []string {
	node := o.node
	if node == "" {
		node = "auto"
	}
	env = setenv(env, "UNUM_NODE", node)
	for _, e := range o.env {
		key, val, ok := strings.Cut(e, "=")
		if !ok { // as docker: from the caller's
			if val, ok = os.LookupEnv(key); !ok {
				continue
			}
		}
		env = setenv(env, key, val)
	}
	return env
}

func setenv(env []string, key, val string) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(e string) bool { return strings.HasPrefix(e, key+"=") })
	return append(env, key+"="+val)
}

// lookPath searches the PATH of env, and says by its exit code whether the
// command is missing or not executable.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil // exec will tell
	}
	for _, e := range env {
		if p, ok := strings.CutPrefix(e, "PATH="); ok {
			os.Setenv("PATH", p)
		}
	}
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
		return path, nil
	case strings.Contains(path, "/"):
		return path, nil // found by a relative PATH, which is the caller's business
	}
	return "", &codeError{exitNotFound, fmt.Errorf("%s: command not found", name)}
}

// becomeUser makes this process another user's, for root; for all others it
// only checks that nothing is asked for.
func becomeUser(who string, env []string) ([]string, error) {
	id, group, hasGroup := strings.Cut(who, ":")
	u, err := user.Lookup(id)
	if err != nil {
		if u, err = user.LookupId(id); err != nil {
			return nil, fmt.Errorf("no such user: %s", id)
		}
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	if os.Geteuid() != 0 {
		if uid != os.Geteuid() || hasGroup {
			return nil, fmt.Errorf("only root may run as %s: %w", who, unum.ErrDenied)
		}
		return env, nil
	}
	if hasGroup {
		g, err := user.LookupGroup(group)
		if err != nil {
			if g, err = user.LookupGroupId(group); err != nil {
				return nil, fmt.Errorf("no such group: %s", group)
			}
		}
		gid, _ = strconv.Atoi(g.Gid)
	}
	var groups []int
	ids, _ := u.GroupIds()
	for _, s := range ids {
		n, _ := strconv.Atoi(s)
		groups = append(groups, n)
	}
	for _, step := range []error{syscall.Setgroups(groups), syscall.Setgid(gid), syscall.Setuid(uid)} {
		if step != nil {
			return nil, fmt.Errorf("become %s: %w", who, step)
		}
	}
	env = setenv(env, "USER", u.Username)
	env = setenv(env, "LOGNAME", u.Username)
	return setenv(env, "HOME", u.HomeDir), nil
}
