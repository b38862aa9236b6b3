package tty

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"unum"
	"unum/carry"
)

// Pages that a daemon left are forgotten when nobody has asked for them.
func TestOldPagesAreForgotten(t *testing.T) {
	dir := t.TempDir()
	key := homeKey{65540, 34816, "n2"}
	for _, name := range []string{"ttyhome.n2.65540.34816", "ttyhome.n2.65541.34817"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		k, err := New(Config{Env: carry.Env{StateDir: dir, Accept: func(string, unum.Acceptor) {}}})
		if err != nil {
			t.Fatal(err)
		}
		k.Homes.mu.Lock()
		h := newHome(k.Homes, key, &Desc{})
		k.Homes.mu.Unlock()
		time.Sleep(lingerTime + time.Second)
		left, _ := filepath.Glob(filepath.Join(dir, "*"))
		if len(left) != 1 || left[0] != h.page.path {
			t.Errorf("left: %v", left)
		}
		h.page.close(false)
		k.Close()
	})
}
