package play

import (
	"fmt"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// network is the nodes' network: a namespace with nothing but a bridge in it,
// and one per node with a link to that bridge. They have no names and no way
// out; the kernel removes them with their last descriptor and process.
type network struct {
	hub   netns.NsHandle
	nodes []netns.NsHandle
}

func port(i int) string { return fmt.Sprintf("n%d", i+1) }

// newNetwork needs a locked thread and leaves it in its own namespace.
func newNetwork(nodes int) (_ *network, err error) {
	home, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	defer home.Close()
	defer func() {
		if e := netns.Set(home); e != nil && err == nil {
			err = e
		}
	}()
	n := &network{hub: netns.None()}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	if n.hub, err = netns.New(); err != nil {
		return nil, fmt.Errorf("new network namespace: %w", err)
	}
	hub, err := routeHandle(n.hub)
	if err != nil {
		return nil, err
	}
	defer hub.Close()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "unum0"}}
	if err := hub.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("make bridge: %w", err)
	}
	for _, name := range []string{"lo", "unum0"} {
		if err := linkUp(hub, name); err != nil {
			return nil, err
		}
	}
	for i := range nodes {
		ns, err := netns.New()
		if err != nil {
			return nil, fmt.Errorf("new network namespace: %w", err)
		}
		n.nodes = append(n.nodes, ns)
		if err := connect(hub, bridge, ns, i); err != nil {
			return nil, fmt.Errorf("network of %s: %w", port(i), err)
		}
	}
	return n, nil
}

// connect gives a node its loopback and its link, eth0.
func connect(hub *netlink.Handle, bridge netlink.Link, ns netns.NsHandle, i int) error {
	link := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: port(i), MasterIndex: bridge.Attrs().Index},
		PeerName:      "eth0",
		PeerNamespace: netlink.NsFd(ns),
	}
	if err := hub.LinkAdd(link); err != nil {
		return fmt.Errorf("make link: %w", err)
	}
	if err := linkUp(hub, port(i)); err != nil {
		return err
	}
	node, err := routeHandle(ns)
	if err != nil {
		return err
	}
	defer node.Close()
	eth0, err := node.LinkByName("eth0")
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(addr(i) + "/24")
	if err != nil {
		return err
	}
	if err := node.AddrAdd(eth0, a); err != nil {
		return fmt.Errorf("set address: %w", err)
	}
	for _, name := range []string{"lo", "eth0"} {
		if err := linkUp(node, name); err != nil {
			return err
		}
	}
	return nil
}

// routeHandle asks for one protocol only: others may be modules that are not
// loaded.
func routeHandle(ns netns.NsHandle) (*netlink.Handle, error) {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return h, nil
}

func linkUp(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("link %s up: %w", name, err)
	}
	return nil
}

// onPort calls f for a node's port on the hub.
func (n *network) onPort(i int, f func(hub *netlink.Handle, l netlink.Link) error) error {
	hub, err := routeHandle(n.hub)
	if err != nil {
		return err
	}
	defer hub.Close()
	l, err := hub.LinkByName(port(i))
	if err != nil {
		return err
	}
	return f(hub, l)
}

// setLink takes a node off the network, or puts it back.
func (n *network) setLink(i int, up bool) error {
	return n.onPort(i, func(hub *netlink.Handle, l netlink.Link) error {
		if up {
			return hub.LinkSetUp(l)
		}
		return hub.LinkSetDown(l)
	})
}

// setCarried takes a node's port off the bridge, or puts it back.
func (n *network) setCarried(i int, carried bool) error {
	return n.onPort(i, func(hub *netlink.Handle, l netlink.Link) error {
		if !carried {
			return hub.LinkSetNoMaster(l)
		}
		bridge, err := hub.LinkByName("unum0")
		if err != nil {
			return err
		}
		return hub.LinkSetMaster(l, bridge)
	})
}

// setApart makes a node's port one of those between which the bridge does not
// forward (4.18).
func (n *network) setApart(i int, apart bool) error {
	return n.onPort(i, func(hub *netlink.Handle, l netlink.Link) error { return hub.LinkSetIsolated(l, apart) })
}

// in runs fn, which may start processes, in a node's namespace. It needs a
// locked thread.
func (n *network) in(i int, fn func() error) error {
	home, err := netns.Get()
	if err != nil {
		return err
	}
	defer home.Close()
	if err := netns.Set(n.nodes[i]); err != nil {
		return err
	}
	err = fn()
	if e := netns.Set(home); e != nil {
		return e
	}
	return err
}

func (n *network) close() {
	for _, ns := range append(n.nodes, n.hub) {
		if ns.IsOpen() {
			ns.Close()
		}
	}
	n.nodes, n.hub = nil, netns.None()
}

// keeper is one locked thread. It starts the nodes: a child's death signal
// comes when the thread dies that made it, not the process.
type keeper struct {
	jobs chan func()
	done chan struct{}
}

func newKeeper() *keeper {
	k := &keeper{jobs: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(k.done)
		runtime.LockOSThread() // never unlocked: the thread ends with its children
		for f := range k.jobs {
			f()
		}
	}()
	return k
}

// do runs fn on the thread and returns what it returned.
func (k *keeper) do(fn func() error) error {
	errs := make(chan error)
	k.jobs <- func() { errs <- fn() }
	return <-errs
}

// close ends the thread, and so every node that still runs.
func (k *keeper) close() {
	close(k.jobs)
	<-k.done
}
