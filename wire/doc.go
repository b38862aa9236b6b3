// Package wire connects the nodes: calls and channels over one mutual-TLS 1.3
// port a node.
//
// # Connections
//
// Whoever has something to ask dials. Towards each peer an endpoint keeps one
// control connection (calls by id, one-way messages such as heartbeats) and up
// to two bulk connections (channels, multiplexed). Answers travel back where
// the question came from, so two nodes that call each other use connections of
// their own and no tie has to be broken.
//
//	ask:    dialed control ──▶ accepted control    call, more, cancel, ack, sync, tell
//	answer: dialed control ◀── accepted control    reply, reply-more
//	channels: either bulk end                      data, credit, close  (open: dialer)
//
// A control connection that breaks is dialed again at once, then with pauses
// that grow to 100 ms, until the peer answers, Lookup no longer knows it, or it
// is declared lost.
//
// # Calls
//
// A call has an id that is unique in the caller's incarnation. After a
// reconnect the caller says which ids it still waits for (sync) and sends them
// again; the receiver knows what it runs and keeps each result until the caller
// has acknowledged it, so within one incarnation of both daemons a handler runs
// once. Bodies above 64 KiB go in parts, so that they do not hold up others.
//
// # Channels
//
// Each direction of a channel has a window of 1 MiB. What has arrived and was
// not yet received counts against it; credit returns as Recv consumes. The
// reader of a connection never waits for anybody, so one slow channel does not
// hold up the rest.
//
// # One port
//
// The ALPN of a TLS ClientHello stands in clear. Every accepted connection is
// peeked at (MSG_PEEK, nothing consumed): the endpoint's own protocol is served
// here, others go to their Route, as an untouched socket, or to their RouteTLS,
// where this endpoint ends mutual TLS and pipes the plain bytes on.
//
// # Epochs
//
// A connection carries, from its hello on, the epoch of the node that dialed.
// Lost(id, epoch) closes all connections of that life and refuses new ones; so
// every frame of a connection is of an epoch that was valid when it was read.
package wire
