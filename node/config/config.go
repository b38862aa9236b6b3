// Package config is the configuration of one node, as it lies in
// DIR/config.json. Play writes it; the supervisor, the daemon and the file
// server read it.
package config

import (
	"encoding/json"
	"os"
	"path/filepath"

	"unum"
)

// Config is one node's configuration. Paths are absolute and as the node's
// mount namespace names them.
type Config struct {
	Cluster  string         // name of the cluster; in play the name of the play
	Node     unum.NodeID    // name of this node
	Index    unum.NodeIndex // the index to ask for; the lease decides
	Hostname string         // what every world of the cluster calls itself
	Version  string         // of the program that wrote this

	Listen          string      // host:port of the node's one TLS port
	Coordinator     string      // host:port of the node that runs the coordination store
	CoordinatorNode unum.NodeID // its name
	Voter           bool        // this node runs it

	Dir        string  // the node's directory, DIR of ARCHITECTURE.md
	Root       string  // tree that becomes / of the world; every node sees the same
	RunDir     string  // becomes /run of the world; the same on all nodes
	CgroupPath string  // name of the node's cgroup below every hierarchy
	CPUs       float64 // cap on processors; 0 is none

	TLS TLS
}

// TLS names the node's key material.
type TLS struct{ CA, Cert, Key string }

// Save writes c to its file. The file appears whole or not at all.
func (c *Config) Save() error {
	b, err := json.MarshalIndent(c, "", "\t")
	if err != nil {
		return err
	}
	tmp := c.Path() + ".new"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, c.Path())
}

// Load reads a file that Save wrote.
func Load(path string) (*Config, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	c := new(Config)
	if err := json.Unmarshal(b, c); err != nil {
		return nil, &unum.Error{Op: "read configuration", Path: path, Err: err}
	}
	return c, nil
}

// The node's files.
func (c *Config) Path() string     { return filepath.Join(c.Dir, "config.json") }
func (c *Config) PubDir() string   { return filepath.Join(c.Dir, "pub") }
func (c *Config) StateDir() string { return filepath.Join(c.Dir, "state") }
func (c *Config) TLSDir() string   { return filepath.Join(c.Dir, "tls") }
func (c *Config) Control() string  { return filepath.Join(c.PubDir(), "control.sock") }
func (c *Config) Log(service string) string {
	return filepath.Join(c.Dir, service+".log")
}
