// Package seccomptest runs a program under a filter, outside of any world, for
// tests of the filter and of what answers its notifications.
package seccomptest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"unum/sys"
)

// What the process is to become: a number is the cookie of a process under a
// filter; its parent is between it and the test.
const (
	variable = "UNUM_SECCOMPTEST"
	parent   = "parent:"
	fdFilter = 3
	fdReport = 4

	setModeFilter   = 1
	flagNewListener = 1 << 3
	flagWaitKill    = 1 << 5
)

// Main must be called first in TestMain: in the process that Start makes it
// installs the filter and executes the program.
func Main() {
	v := os.Getenv(variable)
	if v == "" {
		return
	}
	os.Unsetenv(variable)
	if v, ok := strings.CutPrefix(v, parent); ok {
		os.Exit(between(v, os.Args[1:]))
	}
	cookie, err := strconv.ParseUint(v, 10, 64)
	if err == nil {
		err = become(cookie, os.Args[1:])
	}
	fmt.Fprintln(os.Stderr, "seccomptest:", err)
	os.Exit(126)
}

// between starts the process under the filter and ends as it does. The test may
// trace that process; a tracer that is the parent too would share the reports
// of its threads' waits.
func between(cookie string, argv []string) int {
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, "seccomptest:", err)
		return 126
	}
	cmd := exec.Command(self, argv...)
	cmd.Env = append(os.Environ(), variable+"="+cookie)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{os.NewFile(fdFilter, "filter"), os.NewFile(fdReport, "report")}
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "seccomptest:", err)
		return 126
	}
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	cmd.Wait()
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return cmd.ProcessState.ExitCode()
}

// become does not return if it succeeds.
func become(cookie uint64, argv []string) error {
	raw := make([]byte, 8*unix.BPF_MAXINSNS)
	n, err := unix.Read(fdFilter, raw)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, n/8)
	if err := binary.Read(bytes.NewReader(raw[:n]), binary.LittleEndian, filter); err != nil {
		return err
	}
	path, err := unix.BytePtrFromString(argv[0])
	if err != nil {
		return err
	}
	av, err := syscall.SlicePtrFromStrings(argv)
	if err != nil {
		return err
	}
	ev, err := syscall.SlicePtrFromStrings(os.Environ())
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, e := unix.RawSyscall(unix.SYS_SECCOMP, setModeFilter, flagNewListener|flagWaitKill, uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		return fmt.Errorf("seccomp: %w", e)
	}
	if _, err := unix.Write(fdReport, []byte(fmt.Sprint(os.Getpid(), fd))); err != nil {
		return err
	}
	// The parent has the listener when it says so.
	if _, err := unix.Read(fdFilter, raw[:1]); err != nil {
		return err
	}
	for _, fd := range []int{int(fd), fdFilter, fdReport} {
		unix.CloseOnExec(fd)
	}
	_, _, e = unix.RawSyscall6(unix.SYS_EXECVE, uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(&av[0])),
		uintptr(unsafe.Pointer(&ev[0])), 0, 0, uintptr(cookie))
	return fmt.Errorf("execute %s: %w", argv[0], e)
}

// Start runs cmd under the filter; its exec is the one call that carries the
// cookie. The process is a grandchild, and cmd.Wait tells how it ended, 128 and
// the number for a signal. The listener is the caller's. The process is killed
// when the test ends.
func Start(t testing.TB, filter []unix.SockFilter, cookie uint64, cmd *exec.Cmd) (listener *os.File, pid int) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	must(err)
	cmd.Args = append([]string{self, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = self
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, variable+"="+parent+strconv.FormatUint(cookie, 10))
	if cmd.Stderr == nil {
		cmd.Stderr = os.Stderr
	}
	in, toChild, err := os.Pipe()
	must(err)
	fromChild, out, err := os.Pipe()
	must(err)
	defer fromChild.Close()
	defer toChild.Close()
	cmd.ExtraFiles = []*os.File{in, out}
	must(cmd.Start())
	in.Close()
	out.Close()

	var raw bytes.Buffer
	must(binary.Write(&raw, binary.LittleEndian, filter))
	_, err = toChild.Write(raw.Bytes())
	must(err)
	b := make([]byte, 32)
	n, err := fromChild.Read(b)
	if err != nil {
		t.Fatal("the process ended before its filter stood")
	}
	var num int
	_, err = fmt.Sscan(string(b[:n]), &pid, &num)
	must(err)
	pidfd, err := sys.PidfdOpen(pid)
	must(err)
	t.Cleanup(func() {
		sys.PidfdSendSignal(pidfd, unix.SIGKILL, nil)
		unix.Close(pidfd)
		cmd.Wait() // an error if the test has waited
	})
	listener, err = sys.PidfdGetfd(pidfd, num)
	must(err)
	_, err = toChild.Write([]byte{0})
	must(err)
	return listener, pid
}
