// Package unumtest runs several nodes on one machine for tests: it builds the
// binary, starts a play, looks at it from outside, and says what a test left
// behind. The tests beside it are the ones that need whole clusters: the
// build of a real project, the soak, and what happens when something dies.
//
//	go test ./unumtest                    # the short versions
//	UNUM_LONG=1 go test ./unumtest   # 10,000 execs, 300 at once, every death
//	UNUM_BIN=/tmp/unum go test ./unumtest # a binary that is already built
//
// They need root and say so.
package unumtest

import "os"

// Long says whether the long versions of tests are asked for.
func Long() bool { return os.Getenv("UNUM_LONG") != "" }
