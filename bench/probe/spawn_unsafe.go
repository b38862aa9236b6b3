package probe

import (
	"fmt"
	"runtime"
	"syscall"
	"time"
)

// spawn is vfork and exec as a C library has them: syscall.ForkExec adds a pipe
// and tens of microseconds, which would hide what is measured.
//
// Preconditions: the thread is locked and asynchronous preemption is off
// (GODEBUG=asyncpreemptoff=1): a signal handled in the child would run Go code
// in shared memory.
//
//go:noescape
func spawn(path *byte, argv, envp **byte) (pid int)

// execLoop times n runs of argv from before the vfork to after the wait.
func execLoop(argv, env []string, n int) ([]int64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	path, err := syscall.BytePtrFromString(argv[0])
	if err != nil {
		return nil, err
	}
	argp, err := syscall.SlicePtrFromStrings(argv)
	if err != nil {
		return nil, err
	}
	envp, err := syscall.SlicePtrFromStrings(env)
	if err != nil {
		return nil, err
	}
	ns := make([]int64, 0, n)
	for range n {
		t := time.Now()
		pid := spawn(path, &argp[0], &envp[0])
		if pid < 0 {
			return nil, syscall.Errno(-pid)
		}
		var ws syscall.WaitStatus
		for {
			_, err = syscall.Wait4(pid, &ws, 0, nil)
			if err != syscall.EINTR {
				break
			}
		}
		ns = append(ns, int64(time.Since(t)))
		if err != nil {
			return nil, fmt.Errorf("wait for %d: %w", pid, err)
		}
		if ws != 0 {
			return nil, fmt.Errorf("%s ended with wait status %#x", argv[0], int(ws))
		}
	}
	runtime.KeepAlive(path)
	runtime.KeepAlive(argp)
	runtime.KeepAlive(envp)
	return ns, nil
}
