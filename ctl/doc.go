// Package ctl is the local interface of a node: what the command line and the
// screens ask the daemon, over the stream socket DIR/pub/control.sock.
//
// # Protocol
//
// A connection carries one request and its answers, then closes. A frame is
// its length as four bytes, big-endian, and a msgpack map (message).
// Descriptors travel by SCM_RIGHTS with the first byte of the frame that
// counts them. Text that comes from programs may be any bytes, which is why
// this is not JSON.
//
// The client says the version of the protocol in its request; the daemon
// refuses another one (unum.ErrVersion).
//
// # Rights
//
// The socket is open to everybody. Who asks is what the kernel says
// (SO_PEERCRED, SO_PEERGROUPS), never what the client says. A request acts
// with no more rights than its caller has: see Caller.
//
// # Running a command
//
// The command inherits the client's descriptors 0, 1 and 2. If the client
// asks for a terminal, the server makes one in the world and gives its master
// to the client, which does all the copying: the daemon is in neither path, so
// its death disturbs no output and hangs up no terminal. A client that loses
// the daemon while its command runs asks the next one to wait for the same
// process. One that loses it before it has heard of the start sends its request
// again, under the same ID:
//
//	client ── run ID ──▶ server
//	       ◀─ terminal ─         only if it asked for one, and before the start,
//	                             so that no daemon is the only one to hold it
//	       ◀── started ─
//	       ◀──── exit ──
package ctl
