//go:build !amd64

package pipe

// sysVfork does not exist here: vfork is a clone.
const sysVfork = -1
