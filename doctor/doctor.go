// Package doctor says whether this machine can be a node: every requirement
// with what it is for, the Linux version that brought it, and what happens
// without it. Each is probed by trying it.
package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"golang.org/x/sys/unix"

	"unum"
)

// Check is one requirement.
type Check struct {
	Name    string // of the feature
	Since   string // Linux version that brought it; "" if that says nothing
	For     string // what unum does with it
	Needed  bool   // refused without it
	Without string // what happens, or what to do, without it
	// Probe returns nil if it is there; an unum.ErrNoFeature, a refusal
	// (EPERM, EACCES), or whatever else went wrong.
	Probe func() error
}

// Result is what a probe found.
type Result struct {
	Check Check
	Err   error
}

// Status sums a result up: ok, missing, unknown (not permitted to look), or
// failed.
func (r Result) Status() string {
	switch {
	case r.Err == nil:
		return "ok"
	case errors.Is(r.Err, unum.ErrNoFeature):
		return "missing"
	case errors.Is(r.Err, fs.ErrPermission):
		return "unknown"
	default:
		return "failed"
	}
}

// Examine runs all probes, together, and returns their results in order.
func Examine(checks []Check) []Result {
	out := make([]Result, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		out[i].Check = c
		wg.Go(func() { out[i].Err = c.Probe() })
	}
	wg.Wait()
	return out
}

// Require runs the needed ones of the checks and returns the first refusal: an
// *unum.Error that says what is missing, and what to do.
func Require(checks []Check) error {
	var needed []Check
	for _, c := range checks {
		if c.Needed {
			needed = append(needed, c)
		}
	}
	for _, r := range Examine(needed) {
		if r.Err == nil {
			continue
		}
		err := fmt.Errorf("%w; %s", r.Err, r.Check.Without)
		if errors.Is(r.Err, unix.EPERM) {
			err = fmt.Errorf("%w; not permitted here, even to root: a container?", r.Err)
		}
		return &unum.Error{Op: "check this machine", Path: r.Check.Name, Err: err}
	}
	return nil
}
