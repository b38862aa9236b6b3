package pipe

// lately remembers the last keys that it was told. Home asks for a half that
// has ended only if it did not hear the bye: then it is one of the last. One
// that is forgotten costs that home the time of landWait.
type lately struct {
	keys map[key]struct{}
	ring []key
	at   int
}

// latelyMax bounds it: what a node's homes can have missed at once.
const latelyMax = 2048

func (l *lately) has(k key) bool {
	_, ok := l.keys[k]
	return ok
}

func (l *lately) add(k key) {
	if l.has(k) {
		return
	}
	if l.keys == nil {
		l.keys = map[key]struct{}{}
	}
	if len(l.ring) < latelyMax {
		l.ring = append(l.ring, k)
	} else {
		delete(l.keys, l.ring[l.at])
		l.ring[l.at] = k
		l.at = (l.at + 1) % latelyMax
	}
	l.keys[k] = struct{}{}
}
