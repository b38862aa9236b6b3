package deputy

import (
	"os/exec"
	"testing"
)

// Who waits for a process to be known is told when it is adopted, and at once
// if it is known already.
func TestKnown(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := NewRegistry(nil)
	known := r.Known(cmd.Process.Pid)
	select {
	case <-known:
		t.Error("known before it was adopted")
	default:
	}
	s, err := r.add(cmd.Process.Pid, 65540, waiting, nil)
	if err != nil {
		t.Fatal(err)
	}
	<-known
	<-r.Known(cmd.Process.Pid)
	cmd.Process.Kill()
	cmd.Wait()
	<-s.Gone()
	r.wg.Wait()
}
