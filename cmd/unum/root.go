package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"unum"
	"unum/ctl"
)

// cluster and via are the flags that every command has.
var cluster, via string

// execute runs the command line and returns the exit code.
func execute(args []string) int {
	root := rootCommand()
	root.SetArgs(args)
	cmd, err := root.ExecuteC()
	var e *ended
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return endLike(e.exit)
	}
	_ = cmd
	return fail(err)
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "unum",
		Short: "Many Linux machines, one system",
		Long: `unum makes a group of Linux machines behave as one: programs are placed on any
machine when they start, and nothing notices.`,
		Example: `  sudo unum play                      a three-node cluster on this machine, and a shell in it
  unum run -n n2 ./simulate           inside: on node n2
  unum nodes                          who is there
  unum ps                             what runs where`,
		Version:           unum.Version,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{},
	}
	root.SetVersionTemplate("unum {{.Version}}\n")
	f := root.PersistentFlags()
	f.StringVar(&cluster, "cluster", os.Getenv("UNUM_CLUSTER"), "the play to talk to, by name (default: UNUM_CLUSTER, or the only one)")
	f.StringVar(&via, "via", "", "the node of the play to ask (default n1)")
	root.AddCommand(playCommand(), shCommand(), runCommand(), psCommand(), nodesCommand(),
		whyCommand(), logsCommand(), doctorCommand(), versionCommand())
	root.AddCommand(helperCommands()...)
	return root
}

func dial() (*ctl.Client, error) { return ctl.Dial(cluster, via) }

// completeNodes completes names of nodes.
func completeNodes(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	names := []string{"auto\twhere there is room", "here\tthis node", "elsewhere\tany other node"}
	if cl, err := dial(); err == nil {
		cl.Patience = 0
		nodes, _ := cl.Nodes(cmd.Context())
		for _, n := range nodes {
			names = append(names, string(n.ID)+"\t"+string(n.State))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
