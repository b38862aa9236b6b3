// Package pipe carries pipes: the body reads a pipe whose write end is at home
// (pipe-read), or writes into one whose read end is at home (pipe-write).
//
// The body gets a pipe of its own, of the same capacity. What is in the pipe at
// home is duplicated ahead into the body's, or the other way round, and is
// consumed only when the reader at the far side has taken it. So the writers
// feel one pipe's capacity, a body that does not read steals nothing from who
// comes after it, and whatever was under way when a daemon died is still in a
// kernel pipe. See source and sink, which are the two ends of a stream, and
// half for its life.
//
// Reading ahead is right only while nobody else reads. SoleReader decides that;
// where it says no, pipe-read claims nothing and leaves the pipe to a kind that
// asks home for every read.
package pipe

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"unum"
	"unum/carry"
)

// Service is the channel service of carried pipes.
const Service = "carry.pipe"

// Carrier is a node's share of all carried pipes: the kinds pipe-read and
// pipe-write.
type Carrier struct {
	env     *carry.Env
	log     *slog.Logger
	null    *os.File
	pool    pool
	bufs    buffers
	watcher *watcher // nil: none to be had
	witness *witness // nil: none to be had

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	spent  sync.WaitGroup // goroutines of halves
	halves map[key]*half
	ended  lately         // guest halves that said bye
	landed signal         // a guest half came or went
	idleMu sync.Mutex     // the innermost lock
	idles  map[uint64]int // read ends that are only kept, by inode; guarded by idleMu
	closed bool
}

// New registers the service and takes up what a predecessor left running in the
// background: pipes of bodies that have ended, still used by their children.
func New(env *carry.Env) (*Carrier, error) {
	c := &Carrier{env: env, log: env.Log, halves: map[key]*half{}}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	var err error
	if c.null, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0); err != nil {
		return nil, err
	}
	if c.watcher, err = newWatcher(); err != nil {
		c.log.Warn("no inotify: readers of carried pipes are noticed late", "err", err)
		c.watcher = nil
	}
	if c.witness, err = newWitness(c.ctx, env.Keeper); err != nil {
		c.log.Warn("no inotify: small writes to carried pipes are not joined", "err", err)
		c.witness = nil
	}
	c.adopt()
	c.wg.Add(1)
	go c.tend()
	env.Accept(Service, c.accept)
	return c, nil
}

// Read returns the kind pipe-read, Write the kind pipe-write.
func (c *Carrier) Read() carry.Kind  { return &kind{c, 'r'} }
func (c *Carrier) Write() carry.Kind { return &kind{c, 'w'} }

// Close stops serving and waits for every goroutine. Nothing is taken from the
// Keeper or the StateDir: a successor goes on.
func (c *Carrier) Close() error {
	c.mu.Lock()
	c.closed = true
	hs := make([]*half, 0, len(c.halves))
	for _, h := range c.halves {
		hs = append(hs, h)
	}
	c.mu.Unlock()
	c.cancel()
	for _, h := range hs {
		h.stop()
	}
	c.wg.Wait()
	c.spent.Wait()
	c.watcher.close()
	c.witness.close()
	c.pool.close()
	return c.null.Close()
}

// landWait is how long a channel waits for a half that the node has not landed
// or resumed yet. After it the half counts as gone.
const landWait = 30 * time.Second

// accept serves a channel that home opened.
func (c *Carrier) accept(ctx context.Context, from unum.NodeID, msg []byte, ch unum.Channel) {
	var hi hello
	if err := msgpack.Unmarshal(msg, &hi); err != nil {
		ch.Close()
		return
	}
	if !c.enter() {
		ch.Close()
		return
	}
	defer c.wg.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	h, ch := c.overhear(ctx, ch, hi.Key)
	if h != nil {
		defer h.wg.Done()
	}
	if ctx.Err() != nil {
		ch.Close()
		return
	}
	if h == nil || h.rec.Pl.Home != from {
		ch.Send(ctx, []byte{mBye}) // to nobody, if home has let go
		ch.Close()
		return
	}
	if h.serve(ctx, ch) == errBye {
		h.end()
	}
}

// overheard is a channel of which messages were received ahead.
type overheard struct {
	unum.Channel
	early [][]byte
}

// overhear is await, which ends also when the peer closes the channel: a
// placement that was refused has no guest half, and home lets go.
func (c *Carrier) overhear(ctx context.Context, ch unum.Channel, k key) (*half, *overheard) {
	o := &overheard{Channel: ch}
	if h, decided := c.look(k); decided {
		return h, o
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			msg, err := ch.Recv(ctx)
			if err != nil {
				stop()
				return
			}
			o.early = append(o.early, msg)
		}
	}()
	h := c.await(ctx, k)
	stop()
	<-done
	return h, o
}

// Recv implements unum.Channel. It is for one goroutine.
func (o *overheard) Recv(ctx context.Context) ([]byte, error) {
	if len(o.early) == 0 {
		return o.Channel.Recv(ctx)
	}
	msg := o.early[0]
	o.early = o.early[1:]
	return msg, nil
}

// enter counts a goroutine of the carrier; false if it is closed.
func (c *Carrier) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.wg.Add(1)
	return true
}

// await returns the guest half of k, with one count of its wait group, or nil
// if it is over or does not come.
func (c *Carrier) await(ctx context.Context, k key) (h *half) {
	ctx, cancel := context.WithTimeout(ctx, landWait)
	defer cancel()
	c.landed.wait(ctx, nil, func() (decided bool) {
		h, decided = c.look(k)
		return decided
	})
	return h
}

// look is await as things stand; not decided if there is something to wait for.
func (c *Carrier) look(k key) (h *half, decided bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended.has(k) || k.Side != guest {
		return nil, true
	}
	if h = c.halves[k]; h != nil {
		h.wg.Add(1)
	}
	return h, h != nil
}

// forget takes h off the books. A half whose body was never born has said no
// bye: home may ask for the body once more, and then its half goes on.
// Preconditions: h is over, so that unborn does not change.
func (c *Carrier) forget(h *half) {
	c.mu.Lock()
	delete(c.halves, h.rec.Key)
	if h.side == guest && !h.unborn {
		c.ended.add(h.rec.Key)
	}
	c.mu.Unlock()
	c.landed.broadcast()
}
