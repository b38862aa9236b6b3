package file

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// as runs fn with the file-system identity of c. Root stays what it is. fn
// runs on a thread of its own that ends afterwards, so that no other goroutine
// ever sees that identity: ids are a thread's own (setfsuid(2)), and leaving
// uid 0 takes away the capabilities over files (capabilities(7)).
func as(c *Cred, fn func() error) error {
	if c.Uid == 0 {
		return fn()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- func() error {
			groups := c.Groups
			if err := setThreadGroups(groups); err != nil {
				return err
			}
			if err := unix.Setfsgid(int(c.Gid)); err != nil {
				return err
			}
			if err := unix.Setfsuid(int(c.Uid)); err != nil {
				return err
			}
			return fn()
		}()
	}()
	return <-done
}
