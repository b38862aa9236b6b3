package main

import (
	"errors"

	"github.com/spf13/cobra"
)

var errNotYet = errors.New("not built in yet")

// helper dispatches what other parts of unum start: it must cost nothing.
func helper(args []string) (code int, done bool) { return 0, false }

func helperCommands() []*cobra.Command { return nil }
func playCommand() *cobra.Command {
	return &cobra.Command{Use: "play", RunE: func(*cobra.Command, []string) error { return errNotYet }}
}
func doctorCommand() *cobra.Command {
	return &cobra.Command{Use: "doctor", RunE: func(*cobra.Command, []string) error { return errNotYet }}
}
