package deaths

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"unum/unumtest"
)

// some are nodes whose daemons are killed together. n1 is everybody's home.
type some struct {
	name  string
	nodes []int
}

var who = []some{{"home", []int{0}}, {"guest", []int{1}}, {"both", []int{0, 1}}}

// each runs a script once for every choice of nodes that die. If it was over
// before anything was killed it is run again with more to do: MORE in its
// environment says how many times as much, and out what it then writes.
func (c *cluster) each(t *testing.T, service, script string, within time.Duration, out func(more int) string) {
	c.eachOf(t, who, service, script, within, out)
}

func (c *cluster) eachOf(t *testing.T, choices []some, service, script string, within time.Duration, out func(more int) string) {
	for _, x := range choices {
		t.Run(x.name, func(t *testing.T) {
			c.t = t
			for more, kills := 1, 0; kills == 0; more *= 4 {
				kills = c.under(script, more, time.Duration(more)*within, out(more), func(j *job) int {
					return j.killed(x.nodes, service, 200*time.Millisecond, time.Second)
				})
				t.Logf("%d kills in %d times the work", kills, more)
			}
		})
	}
}

// under runs a script while harm is done to it, which it returns.
func (c *cluster) under(script string, more int, within time.Duration, out string, harm func(j *job) int) int {
	c.t.Helper()
	j := c.run(script, fmt.Sprintf("MORE=%d", more))
	stop := time.AfterFunc(within, func() {
		c.awaitBack()
		c.dump()
		j.cmd.Process.Kill()
	})
	defer stop.Stop()
	n := harm(j)
	if !stop.Stop() {
		c.t.Fatalf("hangs: %s\nso far: %s %s", script, clip(j.out.String()), clip(j.err.String()))
	}
	j.want(time.Second, 0, out)
	c.awaitBack()
	return n
}

// always is an output that does not depend on how much there is to do.
func always(out string) func(int) string { return func(int) string { return out } }

// A script of 200 placed execs, each with a status of its own.
func TestDaemonExecs(t *testing.T) {
	c := start(t, 2)
	c.each(t, "daemon", `
bad=0
for i in $(seq $((200 * MORE))); do
	UNUM_NODE=n2 /bin/sh -c "exit $((i % 256))"
	r=$?
	[ $r = $((i % 256)) ] || { echo "exec $i: $r"; bad=1; }
	x=$(UNUM_NODE=n2 /bin/echo out $i)
	[ "$x" = "out $i" ] || { echo "echo $i: $x"; bad=1; }
done
echo bad $bad`, 120*time.Second, always("bad 0"))
}

// writers is a script in which three placed programs and a local one write
// numbered records to one open file.
const writers = `
w() { UNUM_NODE=$1 /usr/bin/perl -e '$|=1; for (1..1500 * $ENV{MORE}) { syswrite STDOUT, sprintf("%s %06d %s\n", $ARGV[0], $_, "x" x 40) or die "$!"; select undef,undef,undef,0.001 }' $2 || echo "writer $2: $?" >&3; }
exec 3>&1
(w n2 a & w n2 b & w here c & w n2 d & wait) > $D/log.$$
for k in a b c d; do
	grep "^$k " $D/log.$$ | awk -v k=$k '{ if ($2+0 != NR || length($0) != 49) print "record", NR, "of", k, "is", $0 } END { if (NR != 1500 * ENVIRON["MORE"]) print k, NR }'
done
wc -l < $D/log.$$
rm $D/log.$$`

func written(more int) string { return fmt.Sprint(6000 * more) }

// A log shared by writers on two nodes, while daemons die.
func TestDaemonSharedLog(t *testing.T) {
	start(t, 2).each(t, "daemon", writers, 60*time.Second, written)
}

// The same, while the file servers die.
func TestFileServerSharedLog(t *testing.T) {
	start(t, 2).each(t, "fs", writers, 60*time.Second, written)
}

// Queued signals on their way to a placed program: every one arrives once, in
// order.
func TestDaemonSignals(t *testing.T) {
	start(t, 2).each(t, "daemon", `
cat > $D/count.py <<'E'
import signal, sys
sigs = {signal.SIGRTMIN + 3, signal.SIGUSR2}
signal.pthread_sigmask(signal.SIG_BLOCK, sigs)
print("ready", flush=True)
n = 0
while True:
    si = signal.sigwaitinfo(sigs)
    if si.si_signo == signal.SIGUSR2: break
    n += 1
print("count", n, flush=True)
E
cat > $D/send.py <<'E'
import ctypes, sys, time, signal
libc = ctypes.CDLL(None, use_errno=True)
pid, n = int(sys.argv[1]), int(sys.argv[2])
for i in range(n):
    while libc.sigqueue(pid, signal.SIGRTMIN + 3, ctypes.c_void_p(i)) != 0: time.sleep(0.01)
    time.sleep(0.003)
E
mkfifo $D/ready.$$ ; exec 5<>$D/ready.$$; rm $D/ready.$$
UNUM_NODE=n2 python3 $D/count.py > $D/count.out.$$ &
p=$!
for i in $(seq 500); do grep -q ready $D/count.out.$$ && break; sleep 0.05; done
UNUM_NODE=here python3 $D/send.py $p $((1000 * MORE))
kill -USR2 $p
wait $p; echo status $?
tail -1 $D/count.out.$$; rm $D/count.out.$$`, 60*time.Second, func(more int) string { return fmt.Sprintf("status 0\ncount %d", 1000*more) })
}

// Stop and continue of a placed program; its parent hears of each.
func TestDaemonStopContinue(t *testing.T) {
	start(t, 2).each(t, "daemon", `
cat > $D/stop.py <<'E'
import os, signal, sys, time
pid = os.fork()
if pid == 0:
    os.setpgid(0, 0) # in an orphaned group SIGTSTP does nothing
    os.environ["UNUM_NODE"] = "n2"
    os.execv("/bin/sleep", ["sleep", "1000"])
time.sleep(0.5)
for i in range(100 * int(os.environ["MORE"])):
    os.kill(pid, signal.SIGSTOP if i % 2 else signal.SIGTSTP)
    p, st = os.waitpid(pid, os.WUNTRACED)
    if not os.WIFSTOPPED(st): print("round", i, "stop:", st); sys.exit(1)
    os.kill(pid, signal.SIGCONT)
    p, st = os.waitpid(pid, os.WCONTINUED)
    if not os.WIFCONTINUED(st): print("round", i, "cont:", st); sys.exit(1)
    time.sleep(0.02)
os.kill(pid, signal.SIGTERM)
p, st = os.waitpid(pid, 0)
print("end", os.WTERMSIG(st))
E
python3 $D/stop.py`, 60*time.Second, always("end 15"))
}

// project writes a small C project whose build takes a few seconds.
func project(t *testing.T, dir string, files int) {
	t.Helper()
	var objs []string
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	main := "#include <stdio.h>\n"
	call := ""
	for i := range files {
		var b strings.Builder
		b.WriteString("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n")
		for k := range 40 {
			fmt.Fprintf(&b, "int g%d_%d(int x) { char b[64]; snprintf(b, sizeof b, \"%%d\", x * %d); return atoi(b) + (int)strlen(b); }\n", i, k, k+1)
		}
		fmt.Fprintf(&b, "int f%d(int x) { int s = 0;", i)
		for k := range 40 {
			fmt.Fprintf(&b, " s += g%d_%d(x + s);", i, k)
		}
		b.WriteString(" return s; }\n")
		write(fmt.Sprintf("f%d.c", i), b.String())
		objs = append(objs, fmt.Sprintf("f%d.o", i))
		main += fmt.Sprintf("int f%d(int);\n", i)
		call += fmt.Sprintf("\ts += f%d(s & 255);\n", i)
	}
	write("main.c", main+"int main(void) { int s = 1;\n"+call+"\tprintf(\"%d\\n\", s); return 0; }\n")
	write("Makefile", "OBJS = main.o "+strings.Join(objs, " ")+"\nCFLAGS = -O2\nprog: $(OBJS)\n\t$(CC) -o $@ $(OBJS)\n")
}

// rebuild is a script that builds the project natively and then MORE times with
// the compilers placed, which makes the same.
func rebuild(kind string, files int) string {
	return fmt.Sprintf(`cd $D
rm -f *.o prog
make -s prog && cp prog native && rm -f *.o prog || echo native fails
for i in $(seq $MORE); do
	rm -f *.o prog
	UNUM_NODE=%s make -j6 prog > build.log 2>&1; r=$?
	[ $r = 0 ] || { tail -5 build.log; break; }
	[ $(grep -c -- "-c -o" build.log) = %d ] || { echo lines; cat build.log; }
	cmp prog native || break
done
echo same $r`, kind, files+1)
}

// A parallel build goes through, whatever daemon dies, and makes what it
// makes natively.
func TestDaemonBuild(t *testing.T) {
	c := start(t, 3)
	project(t, c.dir, 30)
	kinds, services := []string{"elsewhere"}, []string{"daemon"}
	if unumtest.Long() {
		kinds = append(kinds, "auto")
		services = append(services, "fs")
	}
	for _, kind := range kinds {
		for _, service := range services {
			t.Run(kind+"/"+service, func(t *testing.T) {
				c.t = t
				c.each(t, service, rebuild(kind, 30), 300*time.Second, always("same 0"))
			})
		}
	}
}

// Daemon and file server of a node die together, whichever is first, under a
// build whose compilers share their output: either may be in a call that waits
// for the other.
func TestDaemonAndFileServerBuild(t *testing.T) {
	c := start(t, 3)
	project(t, c.dir, 10)
	for _, services := range []string{"daemon fs", "fs daemon"} {
		t.Run(services, func(t *testing.T) {
			c.eachOf(t, mounted(), services, rebuild("elsewhere", 10), 120*time.Second, always("same 0"))
		})
	}
}

// mounted are the nodes whose file servers die: the guest's, whose mount it is,
// and with time also the others'.
func mounted() []some {
	if unumtest.Long() {
		return who
	}
	return who[1:2]
}

// The same under writers of one log.
func TestDaemonAndFileServerSharedLog(t *testing.T) {
	c := start(t, 2)
	for _, services := range []string{"daemon fs", "fs daemon"} {
		t.Run(services, func(t *testing.T) { c.eachOf(t, mounted(), services, writers, 60*time.Second, written) })
	}
}
