// Package play makes a whole cluster on one machine: every node is a process
// tree in network, pid and mount namespaces and a cgroup of its own, and the
// nodes reach each other through a network that exists only for them.
//
// Nothing of a play outlives it. The nodes die with the process that made
// them, whatever kills it; directories and cgroups that are left then are
// cleared by the next Start.
package play

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"

	"unum"
	"unum/node/config"
)

// Base is where plays live: Base/NAME for each.
const Base = "/run/unum/play"

// Port is the TLS port of every node; they all have addresses of their own.
const Port = 7077

// Config says what cluster to make.
type Config struct {
	Name  string  // "" picks a free one
	Nodes int     // 1 to unum.MaxNodes
	CPUs  float64 // processors each node may use; 0 is no cap
	Root  string  // tree of the cluster; "" is "/"
	Exe   string  // program of `init`, `daemon` and `fs`; "" is this one
	// Trust makes the cluster's CA, and for every node key and certificate,
	// at the paths that its configuration names. The directories exist. Nil
	// makes none.
	Trust func(ctx context.Context, nodes []*config.Config) error
	Log   *slog.Logger // nil discards

	base string // tests
}

// Node is one node of a play.
type Node struct {
	ID     unum.NodeID
	Addr   string // host:port, inside
	Dir    string
	Cgroup string // name below every hierarchy
	Pid    int    // of its init, in the PID namespace of the play
}

// Info is Base/NAME/play.json: what others need to find the play.
type Info struct {
	Name    string
	Version string
	Pid     int // of the process that holds the play
	Nodes   []Node
}

func addr(i int) string { return fmt.Sprintf("10.77.0.%d", i+1) }

var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

func (c *Config) check() error {
	switch {
	case c.Name != "" && !validName.MatchString(c.Name):
		return fmt.Errorf("name %q: only small letters, digits and -, at most 32", c.Name)
	case c.Nodes < 1 || c.Nodes > unum.MaxNodes:
		return fmt.Errorf("%d nodes: a cluster has 1 to %d", c.Nodes, unum.MaxNodes)
	case c.CPUs < 0 || c.CPUs != 0 && c.CPUs < 0.1:
		return fmt.Errorf("%g processors a node: the least is 0.1", c.CPUs)
	}
	return nil
}
