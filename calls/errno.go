package calls

import (
	"errors"

	"golang.org/x/sys/unix"

	"unum"
)

// errno is what a caller sees of an error. A node that is lost has no
// processes any more.
func errno(err error) unix.Errno {
	var no unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &no):
		return no
	case errors.Is(err, unum.ErrDenied):
		return unix.EPERM
	}
	return unix.ESRCH
}
