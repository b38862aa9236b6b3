package tty

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unum"
	"unum/carry"
	"unum/carry/carrytest"
	"unum/sys"
)

// rig is two nodes in one process and a shell on a terminal of the first. In
// it "placed CMD" runs CMD at the second.
type rig struct {
	t       testing.TB
	dir     string
	net     *network
	kinds   map[unum.NodeID]*Kind
	configs map[unum.NodeID]Config
	early   bool // GroupReady comes before the group's leader
	ln      *net.UnixListener
	wg      sync.WaitGroup
	fails   chan error

	starting sync.Mutex

	mu     sync.Mutex
	next   uint64
	live   map[*placing]struct{}
	agents map[groupKey]*agent
	groups map[groupKey]int // home group to the guest's
	bodies map[int]*body
}

// placing is what a successor of the guest's daemon must find again.
type placing struct {
	pl    carry.Placement
	sess  *Desc
	descs []*carry.Desc
	agent *agent

	host int

	mu    sync.Mutex
	life  int
	ends  []carry.Guest
	homes []carry.Home
}

// keep gives every node a keeper, so that its daemon can be restarted.
func (r *rig) keep() {
	for n, k := range r.kinds {
		k.Close()
		dir := filepath.Join(r.dir, "state-"+string(n))
		if err := os.Mkdir(dir, 0o700); err != nil {
			r.t.Fatal(err)
		}
		r.configs[n] = Config{Env: carry.Env{
			Node: n, Peer: r.net.peer(n), Accept: r.net.accept(n), WorldPids: worldPids,
			Keeper: carrytest.NewKeeper(), StateDir: dir,
		}}
		r.start(n)
	}
}

func (r *rig) start(n unum.NodeID) {
	k, err := New(r.configs[n])
	if err != nil {
		r.t.Error(err)
		return
	}
	r.mu.Lock()
	r.kinds[n] = k
	r.mu.Unlock()
}

func (r *rig) kind(n unum.NodeID) *Kind {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.kinds[n]
}

// restart replaces the daemon of a guest.
func (r *rig) restart(n unum.NodeID) {
	r.starting.Lock()
	defer r.starting.Unlock()
	r.kinds[n].Close()
	r.start(n)
	r.mu.Lock()
	var all []*placing
	for p := range r.live {
		if p.pl.Guest == n {
			all = append(all, p)
		}
	}
	r.mu.Unlock()
	for _, p := range all {
		if err := p.resume(r.kinds[n]); err != nil {
			r.fails <- err
		}
	}
}

// restartHome replaces the daemon of a home.
func (r *rig) restartHome(n unum.NodeID) {
	r.starting.Lock()
	defer r.starting.Unlock()
	r.kinds[n].Close()
	r.start(n)
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range r.live {
		if p.pl.Home == n {
			if err := p.resumeHome(r.kinds[n]); err != nil {
				r.fails <- err
			}
		}
	}
}

func (p *placing) resumeHome(k *Kind) error {
	ctx := context.Background()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.homes = nil
	h, err := k.Homes.Attach(ctx, p.pl, p.sess, nil)
	if err != nil {
		return err
	}
	p.homes = append(p.homes, h)
	pidfd, err := unix.PidfdOpen(p.host, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	for _, d := range p.descs {
		if d.Kind != "tty" {
			continue
		}
		f, err := sys.PidfdGetfd(pidfd, d.Nums[0])
		if err != nil {
			return err
		}
		h, err := k.ResumeHome(ctx, p.pl, d, f)
		if err != nil {
			return err
		}
		p.homes = append(p.homes, h)
	}
	for _, h := range p.homes {
		h.Commit()
	}
	return nil
}

func (p *placing) resume(k *Kind) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.life++
	p.ends = nil
	e, err := k.Guests.ResumeSession(context.Background(), p.pl, p.sess)
	if err != nil {
		return err
	}
	e.SetAgent(p.agent)
	p.ends = append(p.ends, e)
	for _, d := range p.descs {
		if d.Kind == "tty" {
			e, err := k.ResumeGuest(context.Background(), p.pl, d)
			if err != nil {
				return err
			}
			p.ends = append(p.ends, e)
		}
	}
	return nil
}

// flush asks again where a daemon was replaced meanwhile.
func (p *placing) flush(ctx context.Context, final bool) error {
	for {
		p.mu.Lock()
		life, ends := p.life, p.ends
		p.mu.Unlock()
		var err error
		for _, e := range ends {
			err = errors.Join(err, e.Flush(ctx, final))
		}
		if p.over(life) {
			continue
		}
		return err
	}
}

func (p *placing) over(life int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.life != life
}

// groupKey is a group or session of home at a guest.
type groupKey struct {
	guest unum.NodeID
	pid   unum.Pid
}

// passKind carries what is no terminal by handing it over, as one machine can.
type passKind struct{}

func (passKind) Name() string { return "pass" }
func (passKind) Claim(context.Context, *carry.Proc, *carry.FD) (*carry.Desc, error) {
	return &carry.Desc{}, nil
}
func (passKind) Serve(context.Context, carry.Placement, *carry.Desc, *os.File) (carry.Home, error) {
	return nil, nil
}
func (passKind) Land(context.Context, carry.Placement, *carry.Desc) (carry.Guest, error) {
	return nil, nil
}
func (passKind) ResumeHome(context.Context, carry.Placement, *carry.Desc, *os.File) (carry.Home, error) {
	return nil, nil
}
func (passKind) ResumeGuest(context.Context, carry.Placement, *carry.Desc) (carry.Guest, error) {
	return nil, nil
}

func worldPids() ([]int, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	var out []int
	for _, n := range names {
		if p, err := strconv.Atoi(n); err == nil {
			out = append(out, p)
		}
	}
	return out, err
}

func newRig(t testing.TB) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: terminals' input is put back by TIOCSTI")
	}
	r := &rig{
		t: t, dir: t.TempDir(), net: newNetwork(), fails: make(chan error, 100),
		agents: map[groupKey]*agent{}, groups: map[groupKey]int{}, kinds: map[unum.NodeID]*Kind{}, configs: map[unum.NodeID]Config{}, live: map[*placing]struct{}{}, bodies: map[int]*body{},
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"placed", "ttybody"} {
		if err := os.Symlink(exe, filepath.Join(r.dir, n)); err != nil {
			t.Fatal(err)
		}
	}
	mk := func(node unum.NodeID) *Kind {
		k, err := New(Config{Env: carry.Env{
			Node: node, Peer: r.net.peer(node), Accept: r.net.accept(node), WorldPids: worldPids,
		}})
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	for _, n := range []unum.NodeID{"n1", "n2", "n3"} {
		r.kinds[n] = mk(n)
	}
	r.ln, err = net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(r.dir, "sock"), Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	r.wg.Add(1)
	go func() {
		defer r.wg.Done()
		for {
			c, err := r.ln.AcceptUnix()
			if err != nil {
				return
			}
			r.wg.Add(1)
			go func() {
				defer r.wg.Done()
				defer c.Close()
				if err := r.place(c); err != nil {
					r.fails <- fmt.Errorf("place: %w", err)
					_ = sendNote(c, note{What: "error", Err: err.Error()})
				}
			}()
		}
	}()
	t.Cleanup(r.close)
	return r
}

func (r *rig) close() {
	r.ln.Close()
	r.mu.Lock()
	for _, b := range r.bodies {
		_ = unix.Kill(b.pid, unix.SIGKILL)
	}
	r.mu.Unlock()
	done := make(chan struct{})
	go func() { r.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		r.t.Error("placements did not end")
		r.stacks()
	}
	for _, a := range r.agents {
		a.close()
	}
	for _, k := range r.kinds {
		done := make(chan struct{})
		go func() { k.Close(); close(done) }()
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			r.t.Error("Close hangs")
		}
	}
	r.net.wg.Wait()
	for len(r.fails) > 0 {
		r.t.Error(<-r.fails)
	}
}

// agent is the guest's session leader.
type agent struct {
	r    *rig
	node unum.NodeID
	cmd  *exec.Cmd
	c    *net.UnixConn
	mu   sync.Mutex
	repl chan note
}

func (r *rig) agentOf(key groupKey) (*agent, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.agents[key]; a != nil {
		return a, nil
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "agent"), os.NewFile(uintptr(fds[1]), "agent")
	defer mine.Close()
	defer theirs.Close()
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	a := &agent{r: r, node: key.guest, cmd: &exec.Cmd{
		Path: exe, Args: []string{"ttyagent"}, ExtraFiles: []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true}, Stderr: os.Stderr,
	}, repl: make(chan note, 1)}
	if err := a.cmd.Start(); err != nil {
		return nil, err
	}
	c, err := net.FileConn(mine)
	if err != nil {
		return nil, err
	}
	a.c = c.(*net.UnixConn)
	r.agents[key] = a
	go func() {
		for {
			n, _, err := recvNote(a.c)
			if err != nil {
				close(a.repl)
				return
			}
			if n.What == "reply" {
				a.repl <- n
				continue
			}
			r.mu.Lock()
			b := r.bodies[n.Pid]
			r.mu.Unlock()
			if b != nil {
				b.events <- n
			}
		}
	}()
	return a, nil
}

func (a *agent) ask(n note, fds ...int) (note, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := sendNote(a.c, n, fds...); err != nil {
		return n, err
	}
	out, ok := <-a.repl
	if !ok {
		return out, net.ErrClosed
	}
	if out.Err != "" {
		return out, fmt.Errorf("agent: %s: %s", n.What, out.Err)
	}
	return out, nil
}

func (a *agent) close() {
	a.c.Close()
	_ = a.cmd.Process.Kill()
	_ = a.cmd.Wait()
}

func (a *agent) SetForeground(_ context.Context, pgid unum.Pid) error {
	a.r.mu.Lock()
	pg := a.r.groups[groupKey{a.node, pgid}]
	a.r.mu.Unlock()
	if pg != 0 && unix.Kill(-pg, 0) != nil {
		pg = 0 // no such group: the agent's own
	}
	_, err := a.ask(note{What: "fg", Pgid: pg})
	return err
}

type body struct {
	pid    int
	events chan note
}

// place does what rexec does.
func (r *rig) place(c *net.UnixConn) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	n, _, err := recvNote(c)
	if err != nil {
		return err
	}
	p := &carry.Proc{HostPid: n.Pid, Pid: unum.Pid(n.Pid)}
	if p.PidFD, err = unix.PidfdOpen(n.Pid, 0); err != nil {
		return err
	}
	defer unix.Close(p.PidFD)
	task, err := sys.ReadTask(n.Pid)
	if err != nil {
		return err
	}
	// "placed" goes from n1 to n2 and from there to n3.
	home, guest := unum.NodeID("n1"), unum.NodeID("n2")
	if slices.Contains(n.Env, "TTY_TEST_NODE=n2") {
		home, guest = guest, "n3"
	}
	n.Env = append(n.Env, "TTY_TEST_NODE="+string(guest))
	homeK, guestK := r.kinds[home], r.kinds[guest]
	descs, err := carry.NewSet(homeK, passKind{}).Describe(ctx, p)
	if err != nil {
		return err
	}
	sess, err := homeK.Homes.Describe(p)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.next++
	pl := carry.Placement{ID: r.next, Pid: p.Pid, Pgid: task.Pgid, Sid: task.Sid, Home: home, Guest: guest}
	r.mu.Unlock()

	var homes []carry.Home
	var ends []carry.Guest
	defer func() {
		for _, e := range ends {
			_ = e.Close()
		}
		for _, h := range homes {
			_ = h.Close()
		}
	}()
	a, err := r.agentOf(groupKey{guest, task.Sid})
	if err != nil {
		return err
	}
	var send *End
	if sess != nil {
		h, err := homeK.Homes.Attach(ctx, pl, sess, nil)
		if err != nil {
			return err
		}
		homes = append(homes, h)
		if send, err = guestK.Guests.Session(ctx, pl, sess); err != nil {
			return err
		}
		ends = append(ends, send)
		if !send.HasAgent() {
			s, err := send.Slave()
			if err != nil {
				return err
			}
			_, err = a.ask(note{What: "ctty"}, int(s.Fd()))
			s.Close()
			if err != nil {
				return err
			}
			send.SetAgent(a)
		}
	}
	start := note{What: "start", Args: n.Args, Env: n.Env, Dir: n.Dir}
	var files []*os.File
	var fds []int
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for _, d := range descs {
		f, err := sys.PidfdGetfd(p.PidFD, d.Nums[0])
		if err != nil {
			return err
		}
		if d.Kind == "tty" {
			h, err := homeK.Serve(ctx, pl, d, f)
			if err != nil {
				return err
			}
			homes = append(homes, h)
			e, err := guestK.Land(ctx, pl, d)
			if err != nil {
				return err
			}
			ends = append(ends, e)
			f = e.Local().File
		}
		files = append(files, f)
		for _, num := range d.Nums {
			start.Nums = append(start.Nums, num)
			fds = append(fds, int(f.Fd()))
		}
	}
	r.starting.Lock() // members of one group come one after the other
	started := sync.OnceFunc(r.starting.Unlock)
	defer started()
	r.mu.Lock()
	start.Pgid = r.groups[groupKey{guest, pl.Pgid}]
	if start.Pgid != 0 && unix.Kill(-start.Pgid, 0) != nil {
		start.Pgid = 0
	}
	r.mu.Unlock()
	if send != nil && r.early {
		if err := send.GroupReady(ctx); err != nil {
			return err
		}
	}
	rep, err := a.ask(start, fds...)
	if err != nil {
		return err
	}
	b := &body{pid: rep.Pid, events: make(chan note, 16)}
	r.mu.Lock()
	r.bodies[b.pid] = b
	if start.Pgid == 0 {
		r.groups[groupKey{guest, pl.Pgid}] = b.pid
	}
	r.mu.Unlock()
	if send != nil && !r.early {
		if err := send.GroupReady(ctx); err != nil {
			return err
		}
	}
	for _, h := range homes {
		h.(*HomeEnd).Commit()
	}
	if _, err := a.ask(note{What: "go", Pid: b.pid}); err != nil {
		return err
	}
	for _, e := range ends {
		e.Started(true)
	}
	p2 := &placing{pl: pl, sess: sess, descs: descs, agent: a, ends: ends, homes: homes, host: n.Pid}
	r.mu.Lock()
	r.live[p2] = struct{}{}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.live, p2)
		r.mu.Unlock()
	}()
	started()
	for _, f := range files {
		f.Close()
	}
	files = nil

	sigs := make(chan note, 16)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			n, _, err := recvNote(c)
			if err != nil {
				return
			}
			sigs <- n
		}
	}()
	defer func() { c.Close(); <-gone }()
	for {
		select {
		case <-gone:
			_ = unix.Kill(b.pid, unix.SIGKILL)
			gone = make(chan struct{})
			close(gone)
			n := <-b.events
			_ = n
			return nil
		case n := <-sigs:
			sig := unix.Signal(n.Sig)
			if os.Getenv("TTY_TRACE") != "" {
				println("SIGNAL", guest, b.pid, sig)
			}
			if sig == unix.SIGCONT {
				if err := r.kind(home).Homes.Sync(ctx, pl); err != nil {
					return err
				}
			}
			switch {
			case r.kind(home).Homes.Signal(ctx, pl, sig):
			case sig == unix.SIGCONT: // shells send it to groups
				j, err := sys.ReadJob(b.pid, nil)
				if err == nil {
					_ = unix.Kill(-j.Pgrp, sig)
				}
			default:
				_ = unix.Kill(b.pid, sig)
			}
		case n := <-b.events:
			what := n.Args[0]
			if os.Getenv("TTY_TRACE") != "" {
				println("EVENT", guest, b.pid, what, n.Sig, n.Code)
			}
			fctx, fcancel := context.WithTimeout(ctx, 10*time.Second)
			if err := p2.flush(fctx, what != "stop"); err != nil {
				r.fails <- fmt.Errorf("flush: %w", err)
			}
			fcancel()
			if what == "stop" {
				if j, err := sys.ReadJob(b.pid, nil); err == nil && j.State != 'T' {
					continue // continued meanwhile
				}
				sig := unix.Signal(n.Sig)
				if (sig == unix.SIGTTIN || sig == unix.SIGTTOU) && r.kind(home).Homes.Foreground(pl) {
					_ = r.kind(home).Homes.Sync(ctx, pl)
					_ = unix.Kill(b.pid, unix.SIGCONT)
					continue
				}
				if err := sendNote(c, note{What: "stop", Sig: n.Sig}); err != nil {
					return err
				}
				continue
			}
			r.mu.Lock()
			delete(r.bodies, b.pid)
			r.mu.Unlock()
			p2.mu.Lock()
			ends, homes = p2.ends, p2.homes
			p2.mu.Unlock()
			for _, e := range ends {
				_ = e.Close()
			}
			for _, h := range homes {
				_ = h.Close()
			}
			return sendNote(c, note{What: what, Code: n.Code, Sig: n.Sig})
		}
	}
}

func (r *rig) stacks() {
	b := make([]byte, 1<<20)
	r.t.Logf("%s", b[:runtime.Stack(b, true)])
}

// dump logs where input is stuck.
func (r *rig) dump() {
	defer r.stacks()
	for n, k := range r.kinds {
		for _, h := range k.Homes.of(func(homeKey) bool { return true }) {
			fg := h.foreground()
			h.mu.Lock()
			r.t.Logf("%s home of %+v: ends %d want %d offered %v fg %d (%v) queue %d up %v live %v", n, h.key, len(h.ends), h.want, h.offered, h.fg, fg, len(h.queue), h.up != nil, h.live)
			for e := range h.ends {
				j, err := sys.ReadJob(e.hostPid, nil)
				r.t.Logf("    %d %+v running %v ctty %v: %+v %v", e.hostPid, e.pl, e.running, e.ctty, j, err)
			}
			h.mu.Unlock()
		}
		k.Guests.mu.Lock()
		for key, l := range k.Guests.lines {
			pg := -1
			l.control(func(fd int) { pg, _ = sys.TtyForeground(fd) })
			l.mu.Lock()
			r.t.Logf("%s guest of %+v: pts %d ends %d want %d offered %v eager %d raw %v fg %d natively %d unread %d", n, key, l.number, len(l.ends), l.want, l.offered, l.eager, l.raw, l.fg, pg, l.unread())
			l.mu.Unlock()
		}
		k.Guests.mu.Unlock()
	}
	out, _ := exec.Command("ps", "-e", "-o", "pid,ppid,pgid,sid,tpgid,tty,stat,wchan:20,args").Output()
	for _, l := range strings.Split(string(out), "\n") {
		if strings.Contains(l, " pts/") {
			r.t.Log(l)
		}
	}
}
