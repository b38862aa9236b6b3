// Package first turns `unum run` inside a world into its command before the
// rest of the program is initialised: it is on the way of every job of a
// script, and the other packages take 10 ms.
//
// Go initialises packages in the order of their import paths, as soon as what
// they import is ready (The Go Programming Language Specification, Program
// initialization). Therefore this is a module of its own, whose path comes
// before github.com, and imports nothing but a few packages of the standard
// library.
package first

import (
	"os"
	"strings"
	"syscall"
)

// Socket is the control socket inside a world.
const Socket = "/run/unum/control.sock"

func init() {
	args := os.Args
	if len(args) < 3 || args[1] != "run" || os.Getenv("UNUM_CLUSTER") != "" {
		return
	}
	var st syscall.Stat_t
	if syscall.Stat(Socket, &st) != nil || st.Mode&syscall.S_IFMT != syscall.S_IFSOCK {
		return
	}
	o, ok := Parse(args[2:])
	if !ok || o.Dir != "" {
		return
	}
	if Named(o.Node) && !known(o.Node) {
		return
	}
	env := Env(os.Environ(), o)
	path := look(o.Argv[0], env)
	if path == "" {
		return
	}
	// If it fails, everything is tried again and the failure told by package main.
	Exec(path, o.Argv, env)
}

// Options are what Parse understands of the flags of `unum run`.
type Options struct {
	Node string
	Dir  string
	Env  []string // K=V, or K for the caller's value
	Argv []string
}

// Parse understands -n, -w, -e and their long names, as pflag does. ok is
// false if there is anything else.
func Parse(args []string) (o Options, ok bool) {
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
			o.Node = val
		case "w", "workdir":
			o.Dir = val
		case "e", "env":
			o.Env = append(o.Env, val)
		default:
			return o, false
		}
	}
	o.Argv = args
	return o, len(args) > 0
}

// Named says whether a choice names a node, and not a way to find one.
func Named(node string) bool {
	switch node {
	case "", "here", "elsewhere", "auto":
		return false
	}
	return true
}

// Env is the environment of a command: the caller's, where it may run, and
// what -e says.
func Env(env []string, o Options) []string {
	node := o.Node
	if node == "" {
		node = "auto"
	}
	env = Setenv(env, "UNUM_NODE", node)
	for _, e := range o.Env {
		key, val, ok := strings.Cut(e, "=")
		if !ok { // as docker
			if val, ok = os.LookupEnv(key); !ok {
				continue
			}
		}
		env = Setenv(env, key, val)
	}
	return env
}

// Setenv returns a copy of env in which key is val.
func Setenv(env []string, key, val string) []string {
	out := make([]string, 0, len(env)+1)
	for _, e := range env {
		if !strings.HasPrefix(e, key+"=") {
			out = append(out, e)
		}
	}
	return append(out, key+"="+val)
}

// known asks the daemon whether the node can take anything. The request is a
// frame of package ctl, written by hand: the map {Op: "node", Proto: 2,
// Body: the node's name}; so is what is looked for in the answer, Op: "ok".
func known(node string) bool {
	if len(node) > 31 {
		return false
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer syscall.Close(fd)
	tv := syscall.Timeval{Sec: 2}
	syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &tv)
	if syscall.Connect(fd, &syscall.SockaddrUnix{Name: Socket}) != nil {
		return false
	}
	name := append([]byte{0xa0 | byte(len(node))}, node...)
	m := append([]byte("\x83\xa2Op\xa4node\xa5Proto\x02\xa4Body"), name...)
	frame := append([]byte{0, 0, 0, byte(len(m))}, m...)
	if n, err := syscall.Write(fd, frame); err != nil || n != len(frame) {
		return false
	}
	b := make([]byte, 512)
	n, err := syscall.Read(fd, b)
	return err == nil && n > 0 && strings.Contains(string(b[:n]), "\xa2Op\xa2ok")
}

// look finds a command on the PATH of env, or returns "" for whatever is not
// plain.
func look(name string, env []string) string {
	if strings.Contains(name, "/") {
		return name
	}
	for _, e := range env {
		path, ok := strings.CutPrefix(e, "PATH=")
		if !ok {
			continue
		}
		for dir := range strings.SplitSeq(path, ":") {
			if !strings.HasPrefix(dir, "/") {
				return ""
			}
			file := dir + "/" + name
			var st syscall.Stat_t
			const effective, executable = 0x200, 1 // AT_EACCESS, X_OK
			if syscall.Stat(file, &st) == nil && st.Mode&syscall.S_IFMT == syscall.S_IFREG &&
				syscall.Faccessat(-1, file, executable, effective) == nil {
				return file
			}
		}
	}
	return ""
}
