// Package calls answers what the world's filter traps besides exec, so that a
// program sees one machine: signals and waits, sessions and groups, priorities
// and limits of processes of other nodes.
//
// The rule by which a process is found: it is born on the node in whose range
// its PID lies, and there it can always be reached, either itself or by its
// deputy. Where a process of another node's range runs, it is a body, or a
// stub that only holds a number.
//
// Every handler is given a notification and answers it exactly once. Most
// calls need nothing and are continued on the receiving goroutine; whatever
// reads /proc or asks another node does so in a goroutine of its own.
package calls
