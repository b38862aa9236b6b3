package rexec

import (
	"context"
	"testing"

	"golang.org/x/sys/unix"

	"unum/carry"
	"unum/sys"
)

// half counts what is asked of it.
type half struct{ unborn, flushed, closed int }

func (h *half) Local() carry.Local { return carry.Local{} }
func (h *half) Started(ok bool) {
	if !ok {
		h.unborn++
	}
}
func (h *half) Flush(context.Context, bool) error { h.flushed++; return nil }
func (h *half) Close() error                      { h.closed++; return nil }

// A body whose exec failed is forgotten once, also if its agent tells of its end
// before the birth is undone.
func TestUnbornIsForgottenOnce(t *testing.T) {
	for _, told := range []bool{false, true} {
		g := newGuests(Config{StateDir: t.TempDir()}, nil, newGroups())
		if err := g.openRecords(); err != nil {
			t.Fatal(err)
		}
		h, ready := &half{}, make(chan struct{})
		b := &body{
			place: carry.Placement{ID: 50, Pid: 70000}, sess: &session{sid: 7, bodies: 2},
			guests: []carry.Guest{h}, ready: ready, born: true,
		}
		g.bodies[70000] = b
		if err := g.recBodies.save(b.key(), &b.bodyRecord); err != nil {
			t.Fatal(err)
		}
		if told {
			g.ended(&childEvent{pid: 70000, info: *sys.MakeSiginfo(unix.SIGCHLD, cldKilled, 70000, 0)}, nil)
		}
		close(ready)
		g.unborn(b)
		g.wg.Wait()
		if *h != (half{unborn: 1, closed: 1}) || b.sess.bodies != 1 || len(g.bodies)+len(g.untold) != 0 {
			t.Errorf("told %v: %+v, %d bodies of the session, %v, %v", told, *h, b.sess.bodies, g.bodies, g.untold)
		}
		if r, err := g.recBodies.load(); len(r) != 0 || err != nil {
			t.Errorf("told %v: records %v %v", told, r, err)
		}
		if r, err := g.recEvents.load(); len(r) != 0 || err != nil {
			t.Errorf("told %v: events %v %v", told, r, err)
		}
	}
}
