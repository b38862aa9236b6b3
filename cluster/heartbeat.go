package cluster

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"unum"
	"unum/cluster/detect"
	"unum/sys"
)

// beatMethod is the one-way message that heartbeats are.
const beatMethod = "cluster.beat"

// Link is what heartbeats need of the node's connections; *wire.Endpoint has
// it.
type Link interface {
	Tell(id unum.NodeID, method string, msg []byte) bool
	HandleTell(method string, f func(from unum.NodeID, msg []byte))
	// Hear hands over what has arrived; messages may also come without it.
	Hear()
	OnLink(f func(id unum.NodeID, inc unum.Incarnation, connected, answered bool))
	Probe(ctx context.Context, id unum.NodeID) bool
	Lost(id unum.NodeID, epoch unum.Epoch)
	Back(id unum.NodeID, epoch unum.Epoch)
	Forget(id unum.NodeID)
}

// HeartbeatConfig says for whom and over what heartbeats go.
type HeartbeatConfig struct {
	Node  unum.NodeID
	Store Store
	Link  Link
	// Load measures this node, once a period, in one goroutine. It must be quick.
	// nil: no load.
	Load func() unum.Load
	// Changed is called, once at a time, after a node's row or its suspicion
	// changed, with what Nodes returns. Not after mere changes of load. nil is
	// allowed.
	Changed func([]unum.NodeInfo)
	// Isolated is called with true when no other node is heard and no host of
	// theirs answers, with false when that has passed or nobody else is left.
	// The others then see this node as silent too and will soon agree that it
	// is lost: what must not run twice is to be halted. Called once at
	// a time; it must be quick. nil is allowed.
	Isolated func(bool)
	Detect   detect.Config
	Log      *slog.Logger // nil discards
}

// Heartbeats tells the other nodes every period that this one lives and how
// busy it is, hears the same of them, and declares down who is lost. It keeps
// the link's Lost and Back in step with the membership.
type Heartbeats struct {
	cfg    HeartbeatConfig
	log    *slog.Logger
	began  time.Time
	cancel context.CancelFunc
	wg     sync.WaitGroup
	dirty  chan struct{} // capacity 1: Changed is due

	// turn is held by who takes a tick, a membership or a change: one after the
	// other. Lock order: turn, mu.
	turn   sync.Mutex
	alone  bool          // what Isolated was told
	ticked time.Duration // the last tick
	every  time.Duration // between ticks
	ticker *sys.Ticker

	// mu guards the rest. It is never held while calling Store or Link.
	mu    sync.Mutex
	det   *detect.Detector
	lease Lease
	own   unum.Load     // measured last
	at    time.Duration // when what Hear brings arrived; 0: now
	rows  map[unum.NodeID]unum.NodeInfo
	loads map[unum.NodeID]unum.Load
	busy  map[work]bool
}

// work is something under way for a node, once at a time.
type work struct {
	kind detect.Kind
	id   unum.NodeID
}

// beat is one heartbeat.
type beat struct {
	Epoch    unum.Epoch         `msgpack:"e"`
	Load     unum.Load          `msgpack:"l"`
	Suspects []detect.Suspicion `msgpack:"s,omitempty"`
}

// NewHeartbeats makes heartbeats that do not go yet.
func NewHeartbeats(c HeartbeatConfig) *Heartbeats {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Detect.Period == 0 {
		c.Detect.Period = 50 * time.Millisecond
	}
	return &Heartbeats{
		cfg: c, log: c.Log, began: time.Now(), dirty: make(chan struct{}, 1),
		det:  detect.New(c.Node, c.Detect),
		rows: map[unum.NodeID]unum.NodeInfo{}, loads: map[unum.NodeID]unum.Load{}, busy: map[work]bool{},
	}
}

// Start begins to send and to observe. Heartbeats go out while the lease is
// held; a node that registers again calls SetLease. ctx bounds the start only.
func (h *Heartbeats) Start(ctx context.Context, l Lease) error {
	run, cancel := context.WithCancel(context.Background())
	undo := context.AfterFunc(ctx, cancel)
	rows, err := h.cfg.Store.Watch(run)
	if !undo() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		return err
	}
	t, err := sys.NewTicker(h.cfg.Detect.Period)
	if err != nil {
		cancel()
		return err
	}
	h.cancel = cancel
	h.every, h.ticker = h.cfg.Detect.Period, t
	h.SetLease(l)
	h.measure()
	h.cfg.Link.HandleTell(beatMethod, h.heard)
	h.cfg.Link.OnLink(h.linkChanged)
	h.wg.Go(func() { h.loop(run, rows) })
	h.wg.Go(func() {
		for t.Wait() == nil {
			h.tick(run)
		}
	})
	h.wg.Go(func() {
		<-run.Done()
		t.Close()
	})
	return nil
}

// SetLease replaces the lease in whose name heartbeats go out.
func (h *Heartbeats) SetLease(l Lease) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lease = l
}

// Close stops sending and observing, and waits.
func (h *Heartbeats) Close() error {
	if h.cancel != nil {
		h.cancel()
	}
	h.wg.Wait()
	return nil
}

// Nodes returns the membership by index, as this node sees it: with the loads
// that were heard last, its own measured last, and suspect who is silent.
func (h *Heartbeats) Nodes() []unum.NodeInfo {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]unum.NodeInfo, 0, len(h.rows))
	for _, n := range h.rows {
		n.Load = h.loads[n.ID]
		if n.ID == h.cfg.Node {
			n.Load = h.own
		} else if living(n) && h.det.Suspected(n.ID) {
			n.State = unum.Suspect
		}
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b unum.NodeInfo) int { return int(a.Index - b.Index) })
	return out
}

func living(n unum.NodeInfo) bool { return n.State != unum.Down && n.State != unum.Left }

func (h *Heartbeats) now() time.Duration { return time.Since(h.began) }

func (h *Heartbeats) loop(ctx context.Context, rows <-chan []unum.NodeInfo) {
	for {
		select {
		case <-ctx.Done():
			return
		case list, ok := <-rows:
			if !ok {
				rows = nil // the store was closed: go on with what is known
				continue
			}
			h.turn.Lock()
			h.members(list)
			h.changed()
			h.turn.Unlock()
		case <-h.dirty:
			h.turn.Lock()
			h.changed()
			h.turn.Unlock()
		}
	}
}

func (h *Heartbeats) changed() {
	if h.cfg.Changed != nil {
		h.cfg.Changed(h.Nodes())
	}
}

// pace sets the time between ticks. Preconditions: turn is held.
func (h *Heartbeats) pace(every time.Duration) {
	if every != h.every {
		h.every = every
		h.ticker.Reset(every)
	}
}

// others lists the living nodes besides this one. Preconditions: mu is held.
func (h *Heartbeats) others() (ids []unum.NodeID) {
	for id, n := range h.rows {
		if id != h.cfg.Node && living(n) {
			ids = append(ids, id)
		}
	}
	return ids
}

// members takes a new membership. The link is told first who is lost and who
// lives: who sees a node up can call it. Preconditions: turn is held.
func (h *Heartbeats) members(list []unum.NodeInfo) {
	h.mu.Lock()
	old := h.rows
	h.mu.Unlock()
	rows := make(map[unum.NodeID]unum.NodeInfo, len(list))
	var alive []detect.Member
	for _, n := range list {
		rows[n.ID] = n
		if living(n) {
			alive = append(alive, detect.Member{ID: n.ID, Epoch: n.Epoch, Lease: n.State != unum.Suspect})
		}
		if n.ID != h.cfg.Node {
			h.tellLink(old[n.ID], n)
		}
	}
	for id := range old {
		if _, ok := rows[id]; !ok && id != h.cfg.Node {
			h.cfg.Link.Forget(id)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rows = rows
	for id := range h.loads {
		if n, ok := rows[id]; !ok || !living(n) {
			delete(h.loads, id)
		}
	}
	h.det.Members(h.now(), alive)
	if len(h.others()) > 0 {
		h.pace(h.cfg.Detect.Period)
	}
}

// tellLink says what has become of a node; was is empty for a new one.
func (h *Heartbeats) tellLink(was, n unum.NodeInfo) {
	switch {
	case was.State == n.State && was.Epoch == n.Epoch:
	case n.State == unum.Down:
		h.log.Warn("node is down", "node", n.ID, "epoch", n.Epoch)
		h.cfg.Link.Lost(n.ID, n.Epoch-1)
	case n.State == unum.Left:
		h.log.Info("node left", "node", n.ID)
		h.cfg.Link.Forget(n.ID)
	case was.Epoch != n.Epoch || !living(was):
		if was.Epoch != 0 && living(was) { // its end was not told, as the next life has begun
			h.cfg.Link.Lost(n.ID, n.Epoch-1)
		}
		h.cfg.Link.Back(n.ID, n.Epoch)
	}
}

// aloneTick is the time between ticks of a node that has nobody to tell: it
// measures its load for whoever asks.
const aloneTick = time.Second

// tick does what is due, and sets the time to the next tick.
func (h *Heartbeats) tick(ctx context.Context) {
	h.turn.Lock()
	defer h.turn.Unlock()
	h.hear()
	b := beat{Load: h.measure()}
	h.mu.Lock()
	events := h.det.Tick(h.now())
	next := h.det.Next()
	to := h.others()
	if len(to) == 0 {
		next = max(next, aloneTick)
	}
	if h.lease != nil {
		select {
		case <-h.lease.Lost():
			h.lease = nil
		default:
			b.Epoch = h.lease.Node().Epoch
		}
	}
	if h.lease == nil {
		to = nil // others are to believe it
	}
	b.Suspects = h.det.Suspects()
	alone := h.det.Isolated()
	h.mu.Unlock()
	if alone != h.alone {
		h.alone = alone
		h.log.Warn("isolation", "isolated", alone)
		if h.cfg.Isolated != nil {
			h.cfg.Isolated(alone)
		}
	}

	if msg, err := msgpack.Marshal(&b); err == nil { // plain data: it does not fail
		for _, id := range to {
			h.cfg.Link.Tell(id, beatMethod, msg)
		}
	}
	for _, e := range events {
		h.handle(ctx, e)
	}
	h.pace(next)
}

// hear takes what has arrived since the last tick. When in between is not
// known: the middle is at most half a period off.
func (h *Heartbeats) hear() {
	now := h.now()
	h.mu.Lock()
	h.at = now - min(now-h.ticked, h.det.Next())/2
	h.mu.Unlock()
	h.ticked = now
	h.cfg.Link.Hear()
	h.mu.Lock()
	h.at = 0
	h.mu.Unlock()
}

func (h *Heartbeats) measure() (own unum.Load) {
	if h.cfg.Load != nil {
		own = h.cfg.Load()
	}
	h.mu.Lock()
	h.own = own
	h.mu.Unlock()
	return own
}

// heard takes a heartbeat, in the reader of a connection or in hear.
func (h *Heartbeats) heard(from unum.NodeID, msg []byte) {
	var b beat
	if err := msgpack.Unmarshal(msg, &b); err != nil {
		h.log.Warn("heartbeat cannot be read", "node", from, "err", err)
		return
	}
	h.mu.Lock()
	at := h.at
	if at == 0 {
		at = h.now()
	}
	events := h.det.Heard(at, from, b.Epoch, b.Suspects)
	if n, ok := h.rows[from]; ok && n.Epoch == b.Epoch && living(n) {
		h.loads[from] = b.Load
	}
	h.mu.Unlock()
	h.notice(events)
}

func (h *Heartbeats) linkChanged(id unum.NodeID, inc unum.Incarnation, connected, answered bool) {
	var events []detect.Event
	h.mu.Lock()
	switch {
	case connected:
		events = h.det.Connected(h.now(), id, inc)
	case answered:
		h.det.Answered(h.now(), id)
	}
	h.mu.Unlock()
	h.notice(events)
}

// notice handles events that need no work.
func (h *Heartbeats) notice(events []detect.Event) {
	for _, e := range events {
		h.log.Info("node is "+map[detect.Kind]string{
			detect.Trust: "trusted again", detect.Suspect: "silent", detect.Restarted: "back with a new daemon",
		}[e.Kind], "node", e.ID, "epoch", e.Epoch)
		select {
		case h.dirty <- struct{}{}:
		default:
		}
	}
}

// handle does what a tick asks for, without waiting.
func (h *Heartbeats) handle(ctx context.Context, e detect.Event) {
	switch e.Kind {
	case detect.Probe:
		// One each tick, whatever became of those before: the first packet of one
		// that falls into a short cut is sent again only after a second, and a
		// link that is up every now and then must be noticed.
		h.wg.Go(func() {
			ctx, stop := context.WithTimeout(ctx, 4*h.cfg.Detect.Period)
			defer stop()
			if h.cfg.Link.Probe(ctx, e.ID) {
				h.mu.Lock()
				h.det.Answered(h.now(), e.ID)
				h.mu.Unlock()
			}
		})
	case detect.Lost:
		h.mu.Lock()
		seen := h.rows[e.ID]
		h.mu.Unlock()
		h.once(e, func() {
			ctx, stop := context.WithTimeout(ctx, 2*time.Second)
			defer stop()
			h.log.Warn("declaring node down", "node", e.ID, "epoch", e.Epoch, "why", e.Why)
			_, err := h.cfg.Store.DeclareDown(ctx, seen)
			if err != nil && !errors.Is(err, unum.ErrStaleEpoch) && ctx.Err() != context.Canceled {
				h.log.Warn("node could not be declared down", "node", e.ID, "err", err)
			}
		})
	default:
		h.notice([]detect.Event{e})
	}
}

// once runs f unless the same is under way for the node.
func (h *Heartbeats) once(e detect.Event, f func()) {
	w := work{e.Kind, e.ID}
	h.mu.Lock()
	busy := h.busy[w]
	h.busy[w] = true
	h.mu.Unlock()
	if busy {
		return
	}
	h.wg.Go(func() {
		defer func() {
			h.mu.Lock()
			delete(h.busy, w)
			h.mu.Unlock()
		}()
		f()
	})
}
