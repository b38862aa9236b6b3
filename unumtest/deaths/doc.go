// Package deaths holds the tests of what dies, and of what is left after much
// has been done: daemons and file servers are killed in the middle of
// pipelines and builds, bodies, deputies, parents, whole nodes and links are
// taken away, and thousands of execs must leave nothing.
//
// The plays are made in the test's own process, since only who made a play can
// take a node off its network.
package deaths
