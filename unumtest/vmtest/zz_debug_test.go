package vmtest

import (
	"os"
	"testing"
	"time"
)

func TestDebug(t *testing.T) {
	k := kit(t)
	im := &Image{}
	im.Programs("bash", "dash", "cat", "ls", "grep", "sed", "ps", "strace", "sleep", "env", "tail", "head", "timeout")
	im.Link("/bin/sh", "dash")
	im.Copy("/usr/bin/unum", os.Getenv("UNUM_BIN"))
	im.Modules(modulesOfPlay...)
	script, _ := os.ReadFile(os.Getenv("VM_SCRIPT"))
	res, err := k.Run(t.Context(), Config{Memory: 3072, Append: "ignore_loglevel"}, im, []Command{{Name: "x", Script: string(script), Timeout: 2 * time.Minute}})
	t.Log(err)
	for _, r := range res {
		t.Logf("status %d\n%s", r.Status, r.Output)
	}
}
