// Package sched decides where a process runs. It is pure: it reads no clock,
// makes no call and starts no goroutine; the time is an argument and the
// decision is a value, so a transcript of what it was told is a test.
//
// # How it decides
//
// An explicit wish (UNUM_NODE) is obeyed when the node can take the process.
// Otherwise the time to completion is estimated for every node:
//
//	cost(node) = d · crowd(node) + hop · crowd(caller's node)
//
// d is the processor time that the command used in the past, crowd is how many
// runnable tasks share a processor (at least 1), and hop is what a placement
// itself costs, 0 on the caller's own node. The smallest cost wins. So a short
// command stays where it is unless that node is very crowded, a compiler goes
// where there is room, and on an idle machine everything stays.
//
// # Why load does not chase itself
//
// A node reports a smoothed number of runnable tasks. What this scheduler
// placed and saw finish is not in that number yet, or only in part: with the
// time constant τ of the smoothing, a task that started at s shows in a report
// of time T as 1 − exp(−(T−s)/τ). The rest, exp(−(T−s)/τ), is added here, and
// taken off for a task that ended. Both are one decaying sum for each node.
//
// # Build trees
//
// What descends from a placed process (Request.Guest) stays on its node unless
// that node is at least twice as crowded as another. So a recipe's shell is
// placed once, and the compiler driver, the compiler and the assembler under
// it start there without another hop.
package sched
