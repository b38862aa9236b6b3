package rexec

import (
	"time"

	"golang.org/x/sys/unix"

	"unum/sched"
	"unum/sys"
)

// observe tells the scheduler when a process that stayed here has ended. Only
// its wall time is known: its parent alone may see what it used.
func (h *Homes) observe(t *sys.Task) {
	fd, err := sys.PidfdOpen(t.Tgid)
	if err != nil {
		h.cfg.Failed(t.Pid)
		return
	}
	from := time.Now()
	h.wg.Add(1)
	go func() {
		defer h.wg.Done()
		defer unix.Close(fd)
		sys.PidfdWait(fd)
		h.cfg.Finished(t.Pid, sched.Outcome{Wall: time.Since(from)})
	}()
}
