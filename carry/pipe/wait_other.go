//go:build !amd64

package pipe

// What newer architectures have only in its general form: vfork is a clone.
const (
	sysVfork     = -1
	sysPoll      = -2
	sysSelect    = -3
	sysEpollWait = -4
	sysPause     = -5
)
