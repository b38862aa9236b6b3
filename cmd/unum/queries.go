package main

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"unum"
)

func nodesCommand() *cobra.Command {
	return jsonFlag(&cobra.Command{
		Use:   "nodes",
		Short: "List the nodes of the cluster",
		Example: `  unum nodes
  unum nodes --json | jq -r '.[] | select(.state == "up") | .node'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := dial()
			if err != nil {
				return err
			}
			nodes, err := cl.Nodes(cmd.Context())
			if err != nil {
				return err
			}
			var rows [][]string
			for _, n := range nodes {
				name := string(n.ID)
				if n.Self {
					name += "*"
				}
				rows = append(rows, []string{
					name, string(n.State), strconv.FormatFloat(n.Load.CPUs, 'f', -1, 64),
					fmt.Sprintf("%.1f", n.Load.Running), strconv.Itoa(n.Load.Guests),
					size(n.Load.MemTotal), size(n.Load.MemFree), n.Addr, n.Version,
				})
			}
			return table(cmd, nodes, "NODE STATE CPUS RUNNING GUESTS MEMORY FREE ADDRESS VERSION", rows)
		},
	})
}

func psCommand() *cobra.Command {
	return jsonFlag(&cobra.Command{
		Use:   "ps",
		Short: "List the processes of the cluster, and where they run",
		Long: `List the processes of the cluster. HOME is the node where a process was born,
NODE the one where it runs. CPU is the share of one processor over its life.`,
		Example: `  unum ps
  unum ps --json | jq '.[] | select(.node != .home)'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := dial()
			if err != nil {
				return err
			}
			procs, err := cl.Ps(cmd.Context())
			if err != nil {
				return err
			}
			names := map[uint32]string{}
			var rows [][]string
			for _, p := range procs {
				rows = append(rows, []string{
					p.Pid.String(), string(p.Node), string(p.Home), userName(p.Uid, names),
					fmt.Sprintf("%.1f", p.CPU), size(p.RSS), age(p.Started), p.State, clean(p.Command),
				})
			}
			return table(cmd, procs, "PID NODE HOME USER CPU MEMORY AGE STATE COMMAND", rows)
		},
	})
}

func parsePid(s string) (unum.Pid, error) {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("%q is not a process id", s)
	}
	return unum.Pid(n), nil
}

func whyCommand() *cobra.Command {
	return jsonFlag(&cobra.Command{
		Use:     "why PID",
		Short:   "Say why a process runs where it runs",
		Example: `  unum why 65601`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pid, err := parsePid(args[0])
			if err != nil {
				return err
			}
			cl, err := dial()
			if err != nil {
				return err
			}
			w, err := cl.Why(cmd.Context(), pid)
			if err != nil {
				return err
			}
			if asJSON(cmd) {
				return printJSON(cmd.OutOrStdout(), w)
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "%d on %s, home %s: %s\n", w.Pid, w.Node, w.Home, clean(w.Command))
			for _, r := range w.Reasons {
				fmt.Fprintf(out, "  %s\n", clean(r))
			}
			return nil
		},
	})
}

func logsCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "logs PID",
		Short: "Show what a detached process has written",
		Long: `Show the output of a process that was started with "unum run -d". The last
1 MiB of each is kept, and what ended processes wrote, of the last 256 of a node.`,
		Example: `  pid=$(unum run -d make -j64)
  unum logs -f $pid`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pid, err := parsePid(args[0])
			if err != nil {
				return err
			}
			cl, err := dial()
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, unix.SIGTERM)
			defer stop()
			for off := int64(0); ; {
				l, err := cl.Logs(ctx, pid, off)
				if err != nil {
					if ctx.Err() != nil {
						return nil
					}
					return err
				}
				if off > 0 && l.Offset > off {
					fmt.Fprintf(os.Stderr, "unum: %d bytes were dropped\n", l.Offset-off)
				}
				if _, err := cmd.OutOrStdout().Write(l.Data); err != nil {
					return err
				}
				off = l.Next
				if !follow || l.Ended {
					return nil // one piece is all that is kept
				}
				if len(l.Data) > 0 {
					continue
				}
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(100 * time.Millisecond):
				}
			}
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the process ends")
	return cmd
}

func versionCommand() *cobra.Command {
	return jsonFlag(&cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions()
			if asJSON(cmd) {
				return printJSON(cmd.OutOrStdout(), v)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "unum %s (%s, %s)\n", v.Unum, v.Revision, v.Go)
			return nil
		},
	})
}
