// Command unum is the whole product: the command line, the daemon, the file
// server process and the helpers that these start.
package main

import (
	"os"
	"runtime"
)

// The main thread runs main, because an exec from it (`unum run` in a world)
// need not first end the others' lives under a new name.
func init() { runtime.LockOSThread() }

func main() {
	args := os.Args[1:]
	if code, done := helper(args); done {
		os.Exit(code)
	}
	os.Exit(execute(args))
}
