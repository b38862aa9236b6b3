package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"unum/doctor"
	"unum/fsnode"
	"unum/node"
	"unum/node/supervise"
	"unum/world"
)

// helpers are what parts of unum start, each with --config FILE.
var helpers = map[string]struct {
	short string
	run   func(config string) int
}{
	"init":   {"Supervise a node's daemon and file server", supervise.Main},
	"daemon": {"Run a node's daemon", daemon},
	"fs":     {"Serve a node's private file system", served(fsnode.Main)},
}

// helper dispatches them before the command line library.
func helper(args []string) (code int, done bool) {
	if len(args) == 0 {
		return 0, false
	}
	switch args[0] {
	case world.Stage1Command:
		return world.Stage1(), true
	case world.Stage2Command:
		return world.Stage2(), true
	}
	if h, ok := helpers[args[0]]; ok && len(args) == 3 && args[1] == "--config" {
		return h.run(args[2]), true
	}
	return 0, false
}

// served runs main and prints how it failed.
func served(main func(config string) error) func(string) int {
	return func(config string) int {
		if err := main(config); err != nil {
			fmt.Fprintln(os.Stderr, line(err))
			return 1
		}
		return 0
	}
}

// daemon refuses a machine that cannot be a node before it starts anything.
func daemon(config string) int {
	return served(func(config string) error {
		if err := doctor.Require(doctor.Table()); err != nil {
			return err
		}
		return node.Main(config)
	})(config)
}

// helperCommands are the helpers for `unum help`; those that only unum itself
// starts are hidden.
func helperCommands() []*cobra.Command {
	var cmds []*cobra.Command
	for _, name := range []string{"daemon", "fs", "init"} {
		h := helpers[name]
		var config string
		c := &cobra.Command{
			Use:    name + " --config FILE",
			Short:  h.short,
			Hidden: name == "init",
			Args:   cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				if code := h.run(config); code != 0 {
					return &codeError{code, errors.New(name + " failed")}
				}
				return nil
			},
		}
		c.Flags().StringVar(&config, "config", "", "configuration of the node")
		c.MarkFlagRequired("config")
		cmds = append(cmds, c)
	}
	return cmds
}
