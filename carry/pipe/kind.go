package pipe

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"unum"
	"unum/carry"
)

// kind is pipe-read or pipe-write.
type kind struct {
	c   *Carrier
	dir byte
}

// desc is what Desc.Data says.
type desc struct {
	Dev, Ino uint64
	Uid, Gid uint32
	Size     int    // capacity, F_GETPIPE_SZ
	Prefill  []byte // pipe-read: what the pipe held at the claim, or its beginning
	Ended    bool   // pipe-read: nothing will follow Prefill
	Records  bool   // pipe-write: home has other writers
	Caller   int    // pipe-read: the process at home, which becomes the deputy
	Doubt    bool   // pipe-read: another holder is at rest only perhaps
}

func (k *kind) Name() string {
	if k.dir == 'r' {
		return "pipe-read"
	}
	return "pipe-write"
}

func (k *kind) fault(op string, pl carry.Placement, err error) error {
	return &unum.Error{Op: op, Pid: pl.Pid, Path: "pipe", Err: err}
}

// open finds the half of d, or makes it with fresh. A half that exists gets
// one more description.
func (k *kind) open(pl carry.Placement, d *carry.Desc, s side, fresh func(h *half, dd *desc) error) (*half, error) {
	var dd desc
	if err := msgpack.Unmarshal(d.Data, &dd); err != nil {
		return nil, err
	}
	if dd.Size < atomicWrite || dd.Size > 1<<30 || len(dd.Prefill) > dd.Size {
		return nil, errBadMessage
	}
	rec := record{
		Key:     key{Side: s, Dir: k.dir, ID: pl.ID, Dev: dd.Dev, Ino: dd.Ino},
		Pl:      pl,
		Size:    dd.Size,
		Records: dd.Records,
		Caller:  dd.Caller,
	}
	k.c.mu.Lock()
	if h := k.c.halves[rec.Key]; h != nil {
		h.mu.Lock()
		if h.refs == 0 { // taken up without the node
			h.left = make(chan struct{})
		}
		h.refs++
		h.nums = append(h.nums, d.Nums...)
		h.mu.Unlock()
		k.c.mu.Unlock()
		return h, nil
	}
	k.c.mu.Unlock()
	h := k.c.newHalf(rec, nil)
	h.nums = slices.Clone(d.Nums)
	if err := fresh(h, &dd); err != nil {
		h.abandon()
		return nil, err
	}
	return h, nil
}

// Serve implements carry.Kind.
func (k *kind) Serve(ctx context.Context, pl carry.Placement, d *carry.Desc, file *os.File) (carry.Home, error) {
	defer file.Close()
	h, err := k.open(pl, d, home, func(h *half, dd *desc) error {
		if err := h.create(); err != nil {
			return err
		}
		if err := h.openHome(file); err != nil {
			return err
		}
		if s, ok := h.eng.(*source); ok {
			n := uint64(len(dd.Prefill))
			s.acked, s.sent, s.fresh, s.hold = n, n, true, true
			s.looked, s.lookEvery = time.Now(), lookAround
			if dd.Doubt {
				s.fence(true)
			}
		} else {
			h.eng.(*sink).hold = true
		}
		return h.start()
	})
	if err != nil {
		return nil, k.fault("carry", pl, err)
	}
	return &homeEnd{h}, nil
}

// ResumeHome implements carry.Kind.
func (k *kind) ResumeHome(ctx context.Context, pl carry.Placement, d *carry.Desc, file *os.File) (carry.Home, error) {
	h, err := k.resume(pl, d, home, file)
	if err != nil {
		return nil, err
	}
	return &homeEnd{h}, nil
}

// ResumeGuest implements carry.Kind.
func (k *kind) ResumeGuest(ctx context.Context, pl carry.Placement, d *carry.Desc) (carry.Guest, error) {
	h, err := k.resume(pl, d, guest, nil)
	if err != nil {
		return nil, err
	}
	return &guestEnd{h: h}, nil
}

// resume takes up a half; at home it waits for Commit as one that is served
// does. A half without a page was over before the daemon died.
func (k *kind) resume(pl carry.Placement, d *carry.Desc, s side, file *os.File) (*half, error) {
	if file != nil {
		defer file.Close()
	}
	h, err := k.open(pl, d, s, func(h *half, _ *desc) error {
		p, _, err := openPage(h.pageName())
		if err != nil {
			return err
		}
		h.page = p
		return h.resume(file)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, k.fault("resume", pl, err)
	}
	return h, nil
}

// Land implements carry.Kind.
func (k *kind) Land(ctx context.Context, pl carry.Placement, d *carry.Desc) (carry.Guest, error) {
	var body *os.File
	h, err := k.open(pl, d, guest, func(h *half, dd *desc) (err error) {
		if err := h.create(); err != nil {
			return err
		}
		body, err = h.makeBody(ctx, dd, d.Flags)
		if err != nil {
			return err
		}
		return h.start()
	})
	if err == nil && body == nil {
		body, err = h.another(d.Flags)
	}
	if err != nil {
		if body != nil {
			body.Close()
		}
		return nil, k.fault("carry", pl, err)
	}
	return &guestEnd{h: h, body: body}, nil
}
