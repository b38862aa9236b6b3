package pipe

import (
	"context"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"unum/carry"
	"unum/sys"
)

// scratch is a pipe of the daemon's own. Its descriptions are blocking, so that
// the poller is not woken by what we do with it: a reader must know how much
// there is, a writer that there is room.
type scratch struct {
	r, w *os.File
	size int
}

func newScratch(size int) (*scratch, error) {
	r, w, err := sys.NewPipe(size, 0, 0)
	if err != nil {
		return nil, err
	}
	return &scratch{r: r, w: w, size: size}, nil
}

// keptScratch returns the scratch pipe kept under name, and makes it if there
// is none. Its content outlives the daemon.
func keptScratch(ctx context.Context, k carry.Keeper, name string, size int) (*scratch, error) {
	s, err := newScratch(size)
	if err != nil {
		return nil, err
	}
	if err := k.Keep(ctx, name, s.r); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// takeScratch is keptScratch for a successor; fs.ErrNotExist if there was none.
func takeScratch(k carry.Keeper, name string) (*scratch, error) {
	r, err := k.Take(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	s := &scratch{}
	if s.r, err = sys.ReopenPipe(r, unix.O_RDONLY); err != nil {
		return nil, err
	}
	if s.w, err = sys.ReopenPipe(r, unix.O_WRONLY); err != nil {
		s.close()
		return nil, err
	}
	if s.size, err = sys.PipeSize(s.r); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *scratch) close() {
	if s == nil {
		return
	}
	s.r.Close()
	if s.w != nil {
		s.w.Close()
	}
}

// left is what the scratch holds.
func (s *scratch) left() int {
	n, err := sys.PipeUnread(s.r)
	if err != nil {
		return 0
	}
	return n
}

// drop throws away n bytes of what s holds.
func (s *scratch) drop(null *os.File, n int) error {
	for n > 0 {
		m, err := sys.Splice(s.r, null, n)
		if err != nil {
			return err
		}
		n -= m
	}
	return nil
}

// pool lends scratch pipes for the length of one step, empty before and after.
type pool struct {
	mu   sync.Mutex
	free []*scratch
}

// maxFree bounds what the pool keeps for the next step.
const maxFree = 4

func (p *pool) get(size int) (*scratch, error) {
	p.mu.Lock()
	for i, s := range p.free {
		if s.size >= size {
			p.free = append(p.free[:i], p.free[i+1:]...)
			p.mu.Unlock()
			return s, nil
		}
	}
	p.mu.Unlock()
	return newScratch(size)
}

// put gives s back; what it still holds is thrown away.
func (p *pool) put(s *scratch, null *os.File) {
	if n := s.left(); n > 0 && s.drop(null, n) != nil {
		s.close()
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) >= maxFree {
		s.close()
		return
	}
	p.free = append(p.free, s)
}

func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.free {
		s.close()
	}
	p.free = nil
}

// buffers lends the memory of messages.
type buffers struct{ p sync.Pool }

func (b *buffers) get(n int) []byte {
	if m, ok := b.p.Get().(*[headLen + maxBytes]byte); ok {
		return m[:n]
	}
	return new([headLen + maxBytes]byte)[:n]
}

// put takes back what get gave; other slices it lets go.
func (b *buffers) put(m []byte) {
	if cap(m) == headLen+maxBytes {
		b.p.Put((*[headLen + maxBytes]byte)(m[:headLen+maxBytes]))
	}
}
