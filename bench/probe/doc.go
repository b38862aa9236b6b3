// Package probe is the half of the benchmarks that runs where something is
// measured: natively or inside a world. The same program does both, so the
// only difference is where it runs. It takes one request a line on standard
// input and answers each with one line on standard output (JSON: these never
// leave the machine), which lets the other half interleave native rounds and
// rounds in the world.
//
// Children get /dev/null as their standard descriptors unless the operation
// says otherwise.
package probe

// Request asks for one operation.
type Request struct {
	Op   string
	Argv []string // exec, run, start
	Env  []string // added to the environment of children: UNUM_NODE=n2
	Dir  string   // run, start: working directory; log: where to make the file
	N    int      // how many times, or how many bytes; start: what stop names
}

// Result is what came of it.
type Result struct {
	Err    string  `json:",omitempty"`
	NS     []int64 `json:",omitempty"` // one sample each, in nanoseconds
	Status int     // run: exit status
	Out    string  `json:",omitempty"` // run: standard output and error
	N      int     // start: what stop takes
}

// The operations.
const (
	OpExec  = "exec"  // N times vfork, exec of Argv and wait; NS
	OpRead  = "read"  // N batches of one-byte reads; NS for one read
	OpRun   = "run"   // Argv to its end; NS (wall), Status, Out
	OpStart = "start" // Argv in the background; N
	OpStop  = "stop"  // ends what start began
	OpPing  = "ping"  // N round trips of a byte through two pipes and a child
	OpPipe  = "pipe"  // N bytes through a child that copies; NS (wall)
	OpKey   = "key"   // N keys echoed by a child in raw mode on a terminal
	OpLog   = "log"   // N writes of 4 KiB by a child to a file that is shared
)

// Roles of the children that this package starts from its own program, as
// `PROGRAM probe ROLE`.
const (
	roleServe  = "serve"
	roleEcho   = "echo"
	roleCopy   = "copy"
	roleRaw    = "raw"
	roleAppend = "append"
)
