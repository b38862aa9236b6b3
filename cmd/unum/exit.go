package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"unum"
	"unum/ctl"
	"unum/sys"
)

// Exit codes of unum's own, as env(1) and docker run have them. Otherwise the
// code is the command's.
const (
	exitFailed   = 125 // unum itself failed
	exitCannot   = 126 // the command cannot be executed
	exitNotFound = 127 // the command is not there
)

// codeError is an error with the exit code that it means.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string { return e.err.Error() }
func (e *codeError) Unwrap() error { return e.err }

// commandError gives the failure to start a command its exit code, and says
// which command it was.
func commandError(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		if !strings.Contains(name, "/") {
			return &codeError{exitNotFound, fmt.Errorf("%s: command not found", name)}
		}
		return &codeError{exitNotFound, fmt.Errorf("%s: %w", name, err)}
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.ENOEXEC), errors.Is(err, syscall.E2BIG),
		errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ELOOP),
		errors.Is(err, syscall.ETXTBSY), errors.Is(err, syscall.ELIBBAD), errors.Is(err, syscall.EINVAL):
		return &codeError{exitCannot, fmt.Errorf("%s: %w", name, err)}
	}
	return err
}

// advice says what to do about a failure whose error says only what it is.
func advice(err error) string {
	for _, a := range []struct {
		is  error
		say string
	}{
		{syscall.EADDRINUSE, "another program has the port: end it, or choose another in the node's configuration"},
		{syscall.ENOSPC, "make room there"},
		{syscall.EDQUOT, "make room there"},
		{syscall.EROFS, "it must be writable"},
		{unum.ErrVersion, "all nodes, and the command line, must be of one version (`unum version`)"},
		{unum.ErrNoIndex, "a cluster has at most 64 nodes: remove one first"},
		{unum.ErrNodeLost, "see `unum nodes`"},
	} {
		if errors.Is(err, a.is) && !strings.HasSuffix(err.Error(), a.say) {
			return "; " + a.say
		}
	}
	return ""
}

// line is the one line that a user reads of a failure.
func line(err error) string { return "unum: " + clean(err.Error()+advice(err)) }

// fail prints the line of a failure and returns its exit code.
func fail(err error) int {
	fmt.Fprintln(os.Stderr, line(err))
	var c *codeError
	if errors.As(err, &c) {
		return c.code
	}
	return exitFailed
}

// ended is an error that says how a command ended, so that it reaches main
// through cobra after everything was cleaned up.
type ended struct{ exit ctl.Exit }

func (e *ended) Error() string { return "command ended" }

// endLike ends this process the way the command ended.
func endLike(e ctl.Exit) int {
	if e.Signal == 0 {
		return e.Code
	}
	sig := unix.Signal(e.Signal)
	unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}) // the command's core is enough
	sys.DieBySignal(sig)
	// Not ended: it is ignored here, or pid 1. Say it as a shell does.
	return 128 + e.Signal
}
