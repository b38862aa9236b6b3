package play

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/node/config"
	"unum/node/supervise"
	"unum/world"
	"unum/world/cgroup"
)

// Play is a running cluster. Its methods may be called from any goroutine.
type Play struct {
	log   *slog.Logger
	base  string
	name  string
	dir   string
	held  *claims
	net   *network
	keep  *keeper
	nodes []*node

	stop sync.Once
	err  error // of Stop
}

type node struct {
	Node
	config *config.Config
	proc   *os.Process
	died   chan struct{} // closed when its init has ended
}

// Start makes the cluster and returns when every node's init runs; WaitReady
// waits for the daemons. On failure nothing is left. The play ends with Stop
// or with the calling process, however that dies.
func Start(ctx context.Context, c Config) (*Play, error) {
	p, err := start(ctx, &c)
	if err != nil {
		return nil, &unum.Error{Op: "play", Err: err}
	}
	return p, nil
}

func start(ctx context.Context, c *Config) (_ *Play, err error) {
	if c.base == "" {
		c.base = Base
	}
	if c.Root == "" {
		c.Root = "/"
	}
	if c.Exe == "" {
		c.Exe = "/proc/self/exe"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if n, in := world.Inside(); in {
		return nil, fmt.Errorf("this is inside the world of node %s, and a play cannot run in a play", n)
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("making namespaces needs root: %w", unum.ErrDenied)
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	if c.Root, err = filepath.Abs(c.Root); err != nil {
		return nil, err
	}
	if st, err := os.Stat(c.Root); err != nil || !st.IsDir() {
		return nil, fmt.Errorf("root %s is no directory", c.Root)
	}

	p := &Play{log: c.Log, base: c.base}
	unlock, err := lockBase(ctx, c.base)
	if err != nil {
		return nil, err
	}
	p.held, err = reserve(ctx, c)
	unlock()
	if err != nil {
		return nil, err
	}
	p.name, p.dir = c.Name, filepath.Join(c.base, c.Name)
	p.keep = newKeeper()
	defer func() {
		if err != nil {
			if e := p.Stop(context.WithoutCancel(ctx)); e != nil {
				err = fmt.Errorf("%w; and then: %v", err, e)
			}
		}
	}()
	if err := p.prepare(ctx, c); err != nil {
		return nil, err
	}
	if err := p.keep.do(func() error {
		for i := range p.nodes {
			if err := p.startNode(i, c.Exe); err != nil {
				return fmt.Errorf("start %s: %w", p.nodes[i].ID, err)
			}
		}
		return nil
	}); err != nil {
		return nil, err
	}
	return p, writeInfo(p.dir, p.Info())
}

// prepare makes what the nodes need before they start. The network takes
// longest, so it is made beside the rest.
func (p *Play) prepare(ctx context.Context, c *Config) error {
	netErr := make(chan error, 1)
	go func() {
		netErr <- p.keep.do(func() (err error) {
			p.net, err = newNetwork(c.Nodes)
			return err
		})
	}()
	err := p.files(ctx, c)
	if e := <-netErr; e != nil {
		return e
	}
	return err
}

func (p *Play) files(ctx context.Context, c *Config) error {
	run := filepath.Join(p.dir, "run")
	// What Debian's /run has that programs do not make themselves.
	for dir, mode := range map[string]os.FileMode{run: 0o755, run + "/lock": 0o777 | os.ModeSticky, run + "/user": 0o755} {
		if err := makeDir(dir, mode); err != nil {
			return err
		}
	}
	var configs []*config.Config
	for i := range c.Nodes {
		n := &node{died: make(chan struct{})}
		n.ID = unum.NodeID(fmt.Sprintf("n%d", i+1))
		n.Addr = fmt.Sprintf("%s:%d", addr(i), Port)
		n.Dir = filepath.Join(p.dir, string(n.ID))
		n.Cgroup = cgroupName(p.name) + "/" + string(n.ID)
		n.config = &config.Config{
			Cluster: p.name, Node: n.ID, Index: unum.NodeIndex(i), Hostname: p.name, Version: unum.Version,
			Listen: n.Addr, Coordinator: fmt.Sprintf("%s:%d", addr(0), Port), CoordinatorNode: "n1", Voter: i == 0,
			Dir: n.Dir, Root: c.Root, RunDir: run, CgroupPath: n.Cgroup, CPUs: c.CPUs,
		}
		tls := n.config.TLSDir()
		n.config.TLS = config.TLS{CA: tls + "/ca.pem", Cert: tls + "/node.pem", Key: tls + "/node.key"}
		for dir, mode := range map[string]os.FileMode{n.Dir: 0o755, n.config.PubDir(): 0o755, n.config.StateDir(): 0o700, tls: 0o700} {
			if err := makeDir(dir, mode); err != nil {
				return err
			}
		}
		if err := n.config.Save(); err != nil {
			return err
		}
		if _, err := cgroup.Create(n.Cgroup, c.CPUs); err != nil {
			return err
		}
		p.nodes = append(p.nodes, n)
		configs = append(configs, n.config)
	}
	if c.Trust != nil {
		return c.Trust(ctx, configs)
	}
	return nil
}

// makeDir is os.MkdirAll without the umask.
func makeDir(dir string, mode os.FileMode) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return err
	}
	return os.Chmod(dir, mode)
}

// startNode runs on the keeper's thread.
func (p *Play) startNode(i int, exe string) error {
	n := p.nodes[i]
	out, err := os.OpenFile(supervise.LogPath(n.config), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(exe, "init", "--config", n.config.Path())
	cmd.Args[0] = "unum"
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS,
		Setsid:     true, // a Ctrl-C is for the user's command
		Pdeathsig:  unix.SIGKILL,
	}
	birth, err := cgroup.Open(n.Cgroup).BirthDir()
	if err != nil {
		return err
	}
	if birth != nil {
		defer birth.Close()
		cmd.SysProcAttr.UseCgroupFD = true
		cmd.SysProcAttr.CgroupFD = int(birth.Fd())
	}
	if err := p.net.in(i, cmd.Start); err != nil {
		return err
	}
	n.proc, n.Pid = cmd.Process, cmd.Process.Pid
	go func() {
		err := cmd.Wait()
		p.log.Info("node has ended", "node", n.ID, "status", err)
		// A machine without power does not refuse connections.
		if err := p.net.setLink(i, false); err != nil {
			p.log.Warn("take a node off the network", "node", n.ID, "err", err)
		}
		close(n.died)
	}()
	return nil
}

// Name is the name of the play.
func (p *Play) Name() string { return p.name }

// Dir is its directory.
func (p *Play) Dir() string { return p.dir }

// Nodes lists the nodes, n1 first.
func (p *Play) Nodes() []Node { return p.Info().Nodes }

// Info is what play.json says.
func (p *Play) Info() *Info {
	info := &Info{Name: p.name, Version: unum.Version, Pid: os.Getpid()}
	for _, n := range p.nodes {
		info.Nodes = append(info.Nodes, n.Node)
	}
	return info
}

// Died is closed when the node's init has ended.
func (p *Play) Died(i int) <-chan struct{} { return p.nodes[i].died }

// Kill ends a node as a loss of power does.
func (p *Play) Kill(i int) error {
	if err := p.nodes[i].proc.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return &unum.Error{Op: "kill node", Node: p.nodes[i].ID, Err: err}
	}
	<-p.nodes[i].died
	return nil
}

// SetLink takes a node off the network, as when its cable is pulled, or puts
// it back.
func (p *Play) SetLink(i int, up bool) error {
	if err := p.net.setLink(i, up); err != nil {
		return &unum.Error{Op: "set link", Node: p.nodes[i].ID, Err: err}
	}
	return nil
}

// SetCarried makes the network lose all that a node sends and is sent, or carry
// it again. The node's link stays up: it is told nothing.
func (p *Play) SetCarried(i int, carried bool) error {
	if err := p.net.setCarried(i, carried); err != nil {
		return &unum.Error{Op: "set network", Node: p.nodes[i].ID, Err: err}
	}
	return nil
}

// SetApart sets a node apart, or ends that: nodes that are set apart reach the
// others, but not each other.
func (p *Play) SetApart(i int, apart bool) error {
	if err := p.net.setApart(i, apart); err != nil {
		return &unum.Error{Op: "set network", Node: p.nodes[i].ID, Err: err}
	}
	return nil
}

// WaitReady returns when the daemon of every node has registered. If ctx ends
// before, or a node dies, the error says what its log said last.
func (p *Play) WaitReady(ctx context.Context) error {
	for _, n := range p.nodes {
		for {
			if _, ok := supervise.LastBeat(n.config.StateDir()); ok {
				break
			}
			var err error
			select {
			case <-n.died:
				err = fmt.Errorf("it ended: %s", lastWords(n.config.Log("daemon"), supervise.LogPath(n.config)))
			case <-ctx.Done():
				err = fmt.Errorf("its daemon is not up: %w: %s", ctx.Err(), lastWords(n.config.Log("daemon")))
			case <-time.After(3 * time.Millisecond):
				continue
			}
			return &unum.Error{Op: "start", Node: n.ID, Err: err}
		}
	}
	return nil
}

// lastWords is the last line of the first log that has one, for an error of one
// line.
func lastWords(paths ...string) string {
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if b = bytes.TrimSpace(b); len(b) > 0 {
			return said(string(b[bytes.LastIndexByte(b, '\n')+1:]))
		}
	}
	return "nothing is in " + strings.Join(paths, " and ")
}

var logField = regexp.MustCompile(`(?:^| )(msg|err)=("(?:[^"\\]|\\.)*"|\S+)`)

// said is what a line of a log says to a person: message and error of a
// structured one, and what came after the program's name otherwise.
func said(line string) string {
	var parts []string
	for _, m := range logField.FindAllStringSubmatch(line, -1) {
		text := m[2]
		if u, err := strconv.Unquote(text); err == nil {
			text = u
		}
		parts = append(parts, text)
	}
	if !strings.HasPrefix(line, "time=") || len(parts) == 0 {
		return strings.TrimPrefix(line, "unum: ")
	}
	return strings.Join(parts, ": ")
}

// Stop ends all nodes and removes everything. It may be called again, and
// then returns the same.
func (p *Play) Stop(ctx context.Context) error {
	p.stop.Do(func() {
		if err := p.teardown(ctx); err != nil {
			p.err = &unum.Error{Op: "stop play", Path: p.name, Err: err}
		}
	})
	return p.err
}

func (p *Play) teardown(ctx context.Context) error {
	for _, n := range p.nodes {
		if n.proc != nil {
			n.proc.Kill()
		}
	}
	for _, n := range p.nodes {
		if n.proc == nil {
			continue
		}
		select {
		case <-n.died:
		case <-ctx.Done():
			return fmt.Errorf("%s does not end: %w", n.ID, ctx.Err())
		}
	}
	p.keep.close()
	if p.net != nil {
		p.net.close()
	}
	unlock, err := lockBase(ctx, p.base)
	if err != nil {
		return err
	}
	defer unlock()
	defer p.held.Close()
	return remove(ctx, p.base, p.name)
}
