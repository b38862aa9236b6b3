package unum

import "context"

// Peer is another node as the rooms that talk to one see it. It is
// implemented by wire, and by fakes in tests. All methods may be called from
// any goroutine.
type Peer interface {
	// Node is the peer's name.
	Node() NodeID

	// Call sends a request and waits for its answer. A call outlives a broken
	// connection and a restart of either side's connection: it is sent again
	// under the same id until it is answered, ctx ends, or the peer is declared
	// lost (ErrNodeLost; ErrUnanswered if it may have been heard). So a handler runs at least once, and once only within
	// one incarnation of the peer's daemon; what must not be done twice across
	// a restart carries an operation id of its own.
	// An error of the handler arrives as an error of the same sentinel.
	Call(ctx context.Context, method string, req []byte) ([]byte, error)

	// Open begins a channel to a service of the peer. hello reaches the
	// service's handler first. Open does not wait for the peer: messages may be
	// sent at once, and a peer without the service closes the channel.
	// A channel does not outlive its connection: Send and Recv then return
	// ErrLinkLost and its owner opens another one, saying in hello from where
	// to resume.
	Open(ctx context.Context, service string, hello []byte) (Channel, error)
}

// Channel is an ordered, flow-controlled, bidirectional sequence of messages
// between two nodes. Recv is for one goroutine at a time, Send for many.
type Channel interface {
	// Send queues one message of at most MaxMessage bytes. It blocks while the
	// receiver is behind by more than its window. It does not keep msg.
	Send(ctx context.Context, msg []byte) error
	// Recv returns the next message, which is the caller's to keep. io.EOF
	// after the peer's Close; ErrLinkLost when the connection broke.
	Recv(ctx context.Context) ([]byte, error)
	// Close tells the peer that nothing more will be sent or received.
	Close() error
}

// MaxMessage is the largest message of a channel, in bytes. Calls have no
// such limit (arguments and environment of an exec may be megabytes).
const MaxMessage = 256 << 10

// Handler answers calls of one method. It runs in a goroutine of its own; ctx
// ends when the endpoint closes or the caller gives up.
type Handler func(ctx context.Context, from NodeID, req []byte) ([]byte, error)

// Acceptor serves the channels opened to one service. It owns ch.
type Acceptor func(ctx context.Context, from NodeID, hello []byte, ch Channel)
