package pipe

import "testing"

func TestLately(t *testing.T) {
	var l lately
	for i := range uint64(3 * latelyMax) {
		l.add(key{ID: i})
		l.add(key{ID: i})
		if l.has(key{ID: i + 1}) {
			t.Fatalf("%d was never told", i+1)
		}
	}
	for i := range uint64(3 * latelyMax) {
		if want := i >= 2*latelyMax; l.has(key{ID: i}) != want {
			t.Fatalf("%d: %v", i, !want)
		}
	}
	if len(l.keys) != latelyMax {
		t.Errorf("%d keys", len(l.keys))
	}
}
