package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"first"

	"unum"
	"unum/ctl"
	"unum/doctor"
	"unum/node/config"
	"unum/play"
	"unum/wire"
	"unum/world"
)

// How long the nodes of a play may take to come up, and to end.
const (
	readyWithin = 60 * time.Second
	stopWithin  = 30 * time.Second
	// A command that is to end because the play is gets this long before it
	// is hung up and then killed.
	endGrace = 2 * time.Second
)

func playCommand() *cobra.Command {
	c := play.Config{Nodes: 3}
	var debug bool
	cmd := &cobra.Command{
		Use:   "play [flags] [-- COMMAND [ARG...]]",
		Short: "Make a cluster on this machine, and a shell or a command in it",
		Long: `Make a cluster of nodes n1, n2, ... on this machine and run COMMAND, or a shell,
in it. When that ends, everything is gone and the exit code is the command's.
Every node has network, PID and mount namespaces and a cgroup of its own.

Nothing but COMMAND writes to the standard output.`,
		Example: `  sudo unum play
  sudo unum play --nodes 5 --cpus 0.5 -- make -j10
  sudo unum play -- unum run -n n2 hostname`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && cmd.ArgsLenAtDash() != 0 {
				return fmt.Errorf("write the command after --: unum play -- %s", strings.Join(args, " "))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if debug {
				os.Setenv("UNUM_DEBUG", "1")
				c.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
			}
			return runPlay(cmd.Context(), c, args)
		},
	}
	f := cmd.Flags()
	f.IntVar(&c.Nodes, "nodes", 3, "how many nodes")
	f.Float64Var(&c.CPUs, "cpus", 0, "processors each node may use, all of it together (default no cap)")
	f.StringVar(&c.Root, "root", "/", "tree that becomes / in the cluster")
	f.StringVar(&c.Name, "name", "", "name of the cluster (default a free one)")
	f.BoolVar(&debug, "debug", false, "say what the play does; daemons log more")
	cmd.MarkFlagDirname("root")
	return cmd
}

func runPlay(ctx context.Context, c play.Config, argv []string) (err error) {
	if node, in := world.Inside(); in {
		return fmt.Errorf("play: this is inside the world of node %s already; a play in a play is not possible", node)
	}
	if os.Geteuid() != 0 {
		return errors.New("play: needs root, to make namespaces and cgroups: sudo unum play")
	}
	if err := doctor.Require(doctor.Table()); err != nil {
		return err
	}

	// A signal that comes before the command runs ends the play; later the
	// command gets it, and TERM and HUP end the play all the same.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	started := make(chan struct{})
	sigs := make(chan os.Signal, 8)
	for _, s := range []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT} {
		if !signal.Ignored(s) {
			signal.Notify(sigs, s)
		}
	}
	defer signal.Stop(sigs)
	go func() {
		for s := range sigs {
			sig := s.(unix.Signal)
			select {
			case <-started:
				if sig == unix.SIGINT || sig == unix.SIGQUIT {
					continue // the command's affair
				}
				time.AfterFunc(endGrace, func() { cancel(&signalled{sig}) })
			default:
				cancel(&signalled{sig})
			}
		}
	}()
	defer func() {
		if s := new(signalled); errors.As(context.Cause(ctx), &s) {
			if e := new(ended); !errors.As(err, &e) {
				err = &ended{ctl.Exit{Signal: int(s.sig)}}
			}
		}
	}()

	c.Trust = trust
	p, err := play.Start(ctx, c)
	if err != nil {
		return err
	}
	defer func() {
		stopCtx, cancel := context.WithTimeout(context.Background(), stopWithin)
		defer cancel()
		if e := p.Stop(stopCtx); e != nil {
			fail(e)
		}
	}()
	cl, err := ready(ctx, p)
	if err != nil {
		return err
	}
	if len(argv) == 0 {
		argv = []string{shell()}
	}
	o := runOptions{Options: first.Options{Argv: argv, Node: os.Getenv("UNUM_NODE")}}
	req, err := request(o, false)
	if err != nil {
		return err
	}
	// The choice is the environment's, so that a node named in it is one only
	// for what the command starts.
	req.Node = ""
	req.Dir = insideRoot(c.Root, req.Dir)
	close(started)
	return runThrough(ctx, cl, req)
}

// signalled is why a play ended before its command did.
type signalled struct{ sig unix.Signal }

func (s *signalled) Error() string { return s.sig.String() }

// ready waits until every node is a member that is up, and says whom it waits
// for if that takes long.
func ready(ctx context.Context, p *play.Play) (*ctl.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	stop := tell(os.Stderr, p)
	defer stop()
	if err := p.WaitReady(ctx); err != nil {
		return nil, err
	}
	cl, err := ctl.Dial(p.Name(), "n1")
	if err != nil {
		return nil, err
	}
	cl.Patience = readyWithin
	for {
		nodes, err := cl.Nodes(ctx)
		if err != nil {
			return nil, err
		}
		up := map[unum.NodeID]bool{}
		for _, n := range nodes {
			// A node that has not told its load yet would get nothing to do.
			up[n.ID] = n.State == unum.Up && n.Load.CPUs > 0
		}
		missing := unum.NodeID("")
		for _, n := range p.Nodes() {
			if !up[n.ID] {
				missing = n.ID
			}
		}
		if missing == "" {
			return cl, nil
		}
		select {
		case <-ctx.Done():
			return nil, &unum.Error{Op: "start", Node: missing, Err: fmt.Errorf("not up after %s; see its log", readyWithin)}
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// tell prints which nodes are missing if the play is not ready in a second.
func tell(w io.Writer, p *play.Play) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		last := ""
		for wait := time.Second; ; wait = 200 * time.Millisecond {
			select {
			case <-done:
				return
			case <-time.After(wait):
			}
			var missing []string
			for _, n := range p.Nodes() {
				if _, err := os.Stat(ctl.PlaySocket(p.Name(), string(n.ID))); err != nil {
					missing = append(missing, string(n.ID))
				}
			}
			say := "the nodes to see each other"
			if len(missing) > 0 {
				say = strings.Join(missing, ", ")
			}
			if say != last {
				fmt.Fprintf(w, "unum: waiting for %s\n", say)
				last = say
			}
		}
	}()
	return func() { close(done); <-ended }
}

// insideRoot names a directory as the cluster does, whose / is root; what is
// outside of it is /.
func insideRoot(root, dir string) string {
	root, err := filepath.Abs(root)
	if err != nil {
		return "/"
	}
	rel, err := filepath.Rel(root, dir)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return "/"
	}
	return filepath.Join("/", rel)
}

// playLife is how long the certificates of a play are good: longer than any
// play runs.
const playLife = 10 * 365 * 24 * time.Hour

// trust makes the authority of a play, which is forgotten at once, and the
// nodes' certificates.
func trust(_ context.Context, nodes []*config.Config) error {
	if len(nodes) == 0 {
		return nil
	}
	ca, err := wire.NewAuthority(nodes[0].Cluster, playLife)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		cert, err := ca.Issue(n.Node, playLife)
		if err != nil {
			return err
		}
		if err := ca.SaveNode(n.TLSDir(), cert); err != nil {
			return err
		}
	}
	return nil
}
