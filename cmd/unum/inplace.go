package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"first"

	"unum"
)

// runOptions are the flags of `unum run`. Those of Options alone, inside a
// world, have been dealt with by package first, unless they failed.
type runOptions struct {
	first.Options
	detach bool
	user   string
}

// runInPlace becomes the command: the exec carries UNUM_NODE, and the world
// places it. It returns only with an error.
func runInPlace(ctx context.Context, o runOptions) error {
	if err := checkNode(ctx, o.Node); err != nil {
		return err
	}
	env := first.Env(os.Environ(), o.Options)
	if o.user != "" {
		var err error
		if env, err = becomeUser(o.user, env); err != nil {
			return err
		}
	}
	if o.Dir != "" {
		if err := os.Chdir(o.Dir); err != nil {
			return err
		}
	}
	path, err := lookPath(o.Argv[0], env)
	if err != nil {
		return err
	}
	err = first.Exec(path, o.Argv, env)
	if err == syscall.ENOEXEC {
		// No #! line: as a shell would.
		err = first.Exec("/bin/sh", append([]string{"sh", path}, o.Argv[1:]...), env)
	}
	if e := commandError(o.Argv[0], err); e != err {
		return e
	}
	return fmt.Errorf("%s: %w", o.Argv[0], err)
}

// checkNode refuses a node that cannot take anything. Any daemon knows.
func checkNode(ctx context.Context, node string) error {
	if !first.Named(node) {
		return nil
	}
	cl, err := dial()
	if err != nil {
		return err
	}
	err = cl.CheckNode(ctx, unum.NodeID(node))
	if !errors.Is(err, unum.ErrNoNode) {
		return err
	}
	nodes, lerr := cl.Nodes(ctx)
	if lerr != nil {
		return err
	}
	var names []string
	for _, n := range nodes {
		names = append(names, string(n.ID))
	}
	return fmt.Errorf("%w (there are: %s)", err, strings.Join(names, ", "))
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
	env = first.Setenv(env, "USER", u.Username)
	env = first.Setenv(env, "LOGNAME", u.Username)
	return first.Setenv(env, "HOME", u.HomeDir), nil
}
