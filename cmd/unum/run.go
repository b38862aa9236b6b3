package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"first"

	"unum/ctl"
)

// binDir holds the command unum inside a world.
const binDir = "/run/unum/bin"

func runCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run [flags] COMMAND [ARG...]",
		Short: "Run a command on a node",
		Long: `Run a command, where there is room or on the node that -n names: a node, "here",
"elsewhere" (any other node) or "auto". Inside the cluster unum becomes the
command. From outside it starts it in the cluster and stands for it: standard
streams, terminal and signals are passed on.

The exit code is the command's; 125 if unum fails, 126 if the command cannot
be executed, 127 if it is not found.`,
		Example: `  unum run ./simulate
  unum run -n n2 make -j8
  unum run -d -n n3 ./server          prints the PID; see "unum logs PID"
  UNUM_NODE=elsewhere make -j6        the same choice, for all that make starts`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("run: no command given: unum run [-n NODE] COMMAND [ARG...]")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Argv = args
			return run(cmd.Context(), o)
		},
	}
	cmd.ValidArgsFunction = func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveDefault
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.StringVarP(&o.Node, "node", "n", "", "where: a node, here, elsewhere or auto (default auto)")
	f.BoolVarP(&o.detach, "detach", "d", false, "do not wait; print the PID")
	f.StringVarP(&o.user, "user", "u", "", "run as this user[:group] (root only)")
	f.StringVarP(&o.Dir, "workdir", "w", "", "working directory")
	f.StringArrayVarP(&o.Env, "env", "e", nil, "set a variable: K=V, or K for the caller's value")
	cmd.RegisterFlagCompletionFunc("node", completeNodes)
	return cmd
}

func shCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "sh [flags]",
		Short: "Open a shell in the cluster, whose jobs are placed by themselves",
		Example: `  unum sh
  unum sh -n n2                       everything from this shell runs on n2`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Argv = []string{shell()}
			return run(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.Node, "node", "n", "", "where: a node, here, elsewhere or auto (default auto)")
	f.StringVarP(&o.user, "user", "u", "", "run as this user[:group] (root only)")
	f.StringVarP(&o.Dir, "workdir", "w", "", "working directory")
	f.StringArrayVarP(&o.Env, "env", "e", nil, "set a variable: K=V, or K for the caller's value")
	cmd.RegisterFlagCompletionFunc("node", completeNodes)
	return cmd
}

// shell is the user's shell, or one that is there.
func shell() string {
	for _, s := range []string{os.Getenv("SHELL"), "/bin/bash"} {
		if s != "" && unix.Access(s, unix.X_OK) == nil {
			return s
		}
	}
	return "/bin/sh"
}

func run(ctx context.Context, o runOptions) error {
	cl, err := dial()
	if err != nil {
		return err
	}
	inside := cl.Path == ctl.InsideSocket
	if inside && !o.detach {
		return runInPlace(ctx, o)
	}
	req, err := request(o, inside)
	if err != nil {
		return err
	}
	if o.detach {
		pid, err := cl.Detach(ctx, req)
		if err != nil {
			return startError(req, err)
		}
		fmt.Println(pid)
		return nil
	}
	return runThrough(ctx, cl, req)
}

// runThrough runs a command through the daemon and ends like it.
func runThrough(ctx context.Context, cl *ctl.Client, req *ctl.RunRequest) error {
	exit, err := cl.Run(ctx, req, ctl.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	if err != nil {
		return startError(req, err)
	}
	return &ended{exit}
}

// startError says why a command did not start. The exit code of the kernel's
// refusal is the command's, but not if it was the directory that is missing.
func startError(req *ctl.RunRequest, err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		if fi, serr := os.Stat(req.Dir); serr != nil || !fi.IsDir() {
			return fmt.Errorf("working directory %s: %w (choose one with -w)", req.Dir, err)
		}
	}
	return commandError(req.Argv[0], err)
}

// request describes a command with everything it inherits from this process.
func request(o runOptions, inside bool) (*ctl.RunRequest, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	if o.Dir != "" {
		if dir, err = filepath.Abs(o.Dir); err != nil {
			return nil, err
		}
	}
	env := os.Environ()
	if !inside {
		env = slices.DeleteFunc(env, func(e string) bool { return strings.HasPrefix(e, "UNUM_CLUSTER=") })
		env = addPath(env)
	}
	r := &ctl.RunRequest{
		Argv: o.Argv, Env: first.Env(env, o.Options), Dir: dir, Node: o.Node, User: o.user, Detach: o.detach,
	}
	old := unix.Umask(0)
	unix.Umask(old)
	r.Umask = uint32(old)
	if n, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err == nil {
		r.Nice = 20 - n // the system call returns 1..40
	}
	// Package os has raised RLIMIT_NOFILE; a failing exec gives it back.
	syscall.Exec("", nil, nil)
	for res := range 16 { // RLIMIT_CPU to RLIMIT_RTTIME
		var l unix.Rlimit
		if unix.Getrlimit(res, &l) == nil {
			r.Rlimits = append(r.Rlimits, ctl.Rlimit{Resource: res, Soft: l.Cur, Max: l.Max})
		}
	}
	return r, nil
}

// addPath puts the world's own unum on the PATH.
func addPath(env []string) []string {
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, e := range env {
		if p, ok := strings.CutPrefix(e, "PATH="); ok && p != "" {
			path = p
		}
	}
	if slices.Contains(strings.Split(path, ":"), binDir) {
		return env
	}
	return first.Setenv(env, "PATH", binDir+":"+path)
}
