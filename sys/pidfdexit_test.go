package sys

import (
	"fmt"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// The status of a process that nobody waited for: its parent ignores SIGCHLD.
func TestPidfdExit(t *testing.T) {
	const parent = `$SIG{CHLD} = "IGNORE"; $| = 1;
my $p = fork // die;
exec "sh", "-c", "read line; $ARGV[0]" unless $p;
open STDIN, "<", "/dev/null"; print "$p\n"; sleep 1000`
	for _, x := range []struct {
		script string
		want   string
	}{{"exit 5", "exit 5"}, {"kill -9 $$", "signal 9"}} {
		cmd := exec.Command("perl", "-e", parent, x.script)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Skip(err)
		}
		var pid int
		if _, err := fmt.Fscan(out, &pid); err != nil {
			t.Fatal(err)
		}
		fd, err := PidfdOpen(pid)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(in, "go")
		if err := PidfdWait(fd); err != nil {
			t.Fatal(err)
		}
		ws, err := PidfdExit(fd)
		unix.Close(fd)
		cmd.Process.Kill()
		cmd.Wait()
		if major, minor := KernelVersion(); err != nil && (major < 6 || major == 6 && minor < 15) {
			t.Skipf("before 6.15: %v", err)
		}
		got := fmt.Sprintf("exit %d", ws.ExitStatus())
		if ws.Signaled() {
			got = fmt.Sprintf("signal %d", ws.Signal())
		}
		if err != nil || got != x.want {
			t.Errorf("%s: %s %v", x.script, got, err)
		}
	}
}
