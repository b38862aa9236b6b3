package cluster

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"unum"
)

// Record is a node's row in the store.
type Record struct {
	ID          unum.NodeID      `msgpack:"id"`
	Index       unum.NodeIndex   `msgpack:"index"`
	Addr        string           `msgpack:"addr"`
	State       unum.NodeState   `msgpack:"state"`
	Epoch       unum.Epoch       `msgpack:"epoch"`
	Incarnation unum.Incarnation `msgpack:"inc"`
	Version     string           `msgpack:"version"`
	Voter       bool             `msgpack:"voter,omitempty"`
}

// Table is the membership as a value: the rules of Store without its storage.
// Each method that changes something returns the record that changed and has
// changed the table, or returns an error and has not.
type Table struct {
	Rows map[unum.NodeIndex]Record
	// Alive holds the nodes whose lease runs.
	Alive map[unum.NodeID]bool
}

// NewTable returns an empty table.
func NewTable() *Table {
	return &Table{Rows: map[unum.NodeIndex]Record{}, Alive: map[unum.NodeID]bool{}}
}

func (t *Table) find(id unum.NodeID) (Record, bool) {
	for _, r := range t.Rows {
		if r.ID == id {
			return r, true
		}
	}
	return Record{}, false
}

// Register is Store.Register.
func (t *Table) Register(g Registration) (Record, error) {
	if g.ID == "" {
		return Record{}, errors.New("a node needs a name")
	}
	r, ok := t.find(g.ID)
	switch {
	case ok && t.Alive[g.ID] && r.Addr != g.Addr:
		return Record{}, fmt.Errorf("%w: %s lives at %s", unum.ErrExists, g.ID, r.Addr)
	case ok && g.Fixed && r.Index != g.Index:
		return Record{}, fmt.Errorf("%w: %s has index %d, not %d", unum.ErrExists, g.ID, r.Index, g.Index)
	case !ok:
		index, err := t.index(g)
		if err != nil {
			return Record{}, err
		}
		r = Record{ID: g.ID, Index: index, Epoch: 1, State: unum.Joining}
	case r.State == unum.Left, r.State != unum.Down && g.Fresh:
		r.Epoch++
		r.State = unum.Joining
	case r.State == unum.Down: // its epoch was raised then
		r.State = unum.Joining
	}
	r.Addr, r.Incarnation, r.Version, r.Voter = g.Addr, g.Incarnation, g.Version, g.Voter
	t.Rows[r.Index] = r
	t.Alive[r.ID] = true
	return r, nil
}

// index chooses the index of a new record: the lowest free one.
func (t *Table) index(g Registration) (unum.NodeIndex, error) {
	if g.Fixed {
		if g.Index < 0 || g.Index >= unum.MaxNodes {
			return 0, fmt.Errorf("%w: there is no index %d", unum.ErrNoIndex, g.Index)
		}
		if r, held := t.Rows[g.Index]; held {
			return 0, fmt.Errorf("%w: index %d is held by %s", unum.ErrExists, g.Index, r.ID)
		}
		return g.Index, nil
	}
	for i := range unum.NodeIndex(unum.MaxNodes) {
		if _, held := t.Rows[i]; !held {
			return i, nil
		}
	}
	return 0, unum.ErrNoIndex
}

// SetState is Store.SetState.
func (t *Table) SetState(id unum.NodeID, epoch unum.Epoch, s unum.NodeState) (Record, error) {
	r, ok := t.find(id)
	switch {
	case !ok:
		return r, unum.ErrNoNode
	case r.Epoch != epoch || r.State == unum.Down:
		return r, fmt.Errorf("%w: %s is in epoch %d, not %d", unum.ErrStaleEpoch, id, r.Epoch, epoch)
	case s != unum.Up && s != unum.Draining && s != unum.Left:
		return r, fmt.Errorf("state %q cannot be set", s)
	}
	r.State = s
	t.Rows[r.Index] = r
	if s == unum.Left {
		delete(t.Alive, id)
	}
	return r, nil
}

// DeclareDown is Store.DeclareDown. changed is false if it was done before.
func (t *Table) DeclareDown(seen unum.NodeInfo) (r Record, changed bool, err error) {
	r, ok := t.find(seen.ID)
	switch {
	case !ok:
		return r, false, unum.ErrNoNode
	case r.Epoch == seen.Epoch+1:
		return r, false, nil
	case r.Epoch != seen.Epoch:
		return r, false, fmt.Errorf("%w: %s is in epoch %d, not %d", unum.ErrStaleEpoch, r.ID, r.Epoch, seen.Epoch)
	case seen.Incarnation != 0 && r.Incarnation != seen.Incarnation:
		return r, false, fmt.Errorf("%w: %s has a new daemon", unum.ErrStaleEpoch, r.ID)
	case seen.State == unum.Suspect && t.Alive[r.ID]:
		return r, false, fmt.Errorf("%w: %s has its lease again", unum.ErrStaleEpoch, r.ID)
	}
	r.Epoch++
	r.State = unum.Down
	t.Rows[r.Index] = r
	delete(t.Alive, r.ID)
	return r, true, nil
}

// Release is Store.Release. ok is false if there is nothing to release.
func (t *Table) Release(id unum.NodeID) (r Record, ok bool, err error) {
	r, ok = t.find(id)
	if !ok {
		return r, false, nil
	}
	if r.State != unum.Down && r.State != unum.Left {
		return r, false, fmt.Errorf("%w: %s is %s", unum.ErrExists, id, r.State)
	}
	delete(t.Rows, r.Index)
	delete(t.Alive, id)
	return r, true, nil
}

// Info returns a record as others see it.
func (t *Table) Info(r Record) unum.NodeInfo {
	s := r.State
	if s != unum.Down && s != unum.Left && !t.Alive[r.ID] {
		s = unum.Suspect
	}
	return unum.NodeInfo{
		ID: r.ID, Index: r.Index, Addr: r.Addr, State: s, Epoch: r.Epoch,
		Incarnation: r.Incarnation, Version: r.Version, Voter: r.Voter,
	}
}

// Nodes lists the table by index.
func (t *Table) Nodes() []unum.NodeInfo {
	out := make([]unum.NodeInfo, 0, len(t.Rows))
	for _, r := range t.Rows {
		out = append(out, t.Info(r))
	}
	slices.SortFunc(out, func(a, b unum.NodeInfo) int { return cmp.Compare(a.Index, b.Index) })
	return out
}

// Holds says whether a registration still stands: nil, or why not.
func (t *Table) Holds(r Record) error {
	now, ok := t.Rows[r.Index]
	switch {
	case !ok || now.ID != r.ID:
		return fmt.Errorf("%w: its record is gone", unum.ErrStaleEpoch)
	case now.Epoch != r.Epoch:
		return fmt.Errorf("%w: declared down, epoch is now %d", unum.ErrStaleEpoch, now.Epoch)
	case now.Incarnation != r.Incarnation:
		return fmt.Errorf("%w: another daemon took the node over", unum.ErrExists)
	case now.State == unum.Left:
		return errors.New("the node left")
	}
	return nil
}
