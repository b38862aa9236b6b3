package calls_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"unum/unumtest"
)

// script runs in a play of three nodes; each line that it prints is "name
// value". Its own shell is on n1.
const script = `
export UNUM_NODE=here
set -m
spin='i=0; while [ $i -lt 150000 ]; do i=$((i+1)); done; :'

UNUM_NODE=n2 sleep 100 & p=$!
kill -0 $p; echo there $?
kill -TERM $p; wait $p 2>/dev/null; echo killed $?

trap 'echo signalled yes' USR1
UNUM_NODE=n2 sh -c 'kill -USR1 '$$'; echo from $?; kill -0 4000000 2>/dev/null; echo nobody $?'

UNUM_NODE=n2 sh -c 'echo parent $PPID'; echo shell $$

rm -f "$DIR"/*
UNUM_NODE=n2 python3 -c '
import os, signal, sys
ppid = os.getppid()
print("ppid", ppid == int(sys.argv[1]), flush=True)
print("group", os.getpgid(ppid) == ppid and os.getsid(ppid) == os.getsid(0), flush=True)
' $$

member() { exec sh -c ': > "$DIR/$1"; trap ": > \"\$DIR/$1.term\"; exit" TERM; while :; do sleep 0.05; done' sh $1; }
( member one & UNUM_NODE=n2 member two & UNUM_NODE=n3 member three & wait ) & g=$!
for f in one two three; do for i in $(seq 200); do [ -e "$DIR/$f" ] && break; sleep 0.05; done; done
kill -TERM -- -$g; echo sent $?
wait $g 2>/dev/null
for f in one two three; do
  for i in $(seq 100); do [ -e "$DIR/$f.term" ] && break; sleep 0.05; done
  [ -e "$DIR/$f.term" ]; echo $f $?
done
for i in $(seq 100); do kill -0 -- -$g 2>/dev/null || break; sleep 0.05; done
kill -0 -- -$g 2>/dev/null; echo left $?

( sleep 100 & UNUM_NODE=n2 sh -c 'kill -KILL 0; echo survived yes'; wait ) & wait $! 2>/dev/null
echo own $?

state() { while read k v rest; do [ "$k" = State: ] && echo $v; done < /proc/$1/status; }
UNUM_NODE=n3 sleep 100 & p=$!
sleep 0.2
kill -STOP $p; for i in $(seq 100); do [ "$(state $p)" = T ] && break; sleep 0.05; done; echo stopped $(state $p)
kill -CONT $p; for i in $(seq 100); do [ "$(state $p)" = S ] && break; sleep 0.05; done; echo running $(state $p)
kill -KILL $p; wait $p 2>/dev/null

TIMEFORMAT='bash %3U'; time UNUM_NODE=n2 sh -c "$spin"
dash -c 'UNUM_NODE=n2 sh -c "$1"; times' dash "$spin" | tail -1 | sed 's/0m\([0-9.]*\)s .*/dash \1/'
UNUM_NODE=n2 python3 -c 'import sys' # warm
python3 -c '
import os, resource, sys
env = dict(os.environ, UNUM_NODE="n2")
before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
pid = os.spawnve(os.P_NOWAIT, "/bin/sh", ["sh", "-c", sys.argv[1]], env)
print("wait4", os.wait4(pid, 0)[2].ru_utime)
print("children", resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
# A child of ours whose child is placed.
pid = os.spawnve(os.P_NOWAIT, "/bin/sh", ["sh", "-c", "UNUM_NODE=n3 sh -c \"$0\"; :", sys.argv[1]], os.environ)
print("grandchild", os.wait4(pid, 0)[2].ru_utime)
' "$spin"
echo end 0
`

// What a placed process does to others, and others to it, is as on one
// machine.
func TestAcrossNodes(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a play needs root")
	}
	for _, name := range []string{"bash", "dash", "python3"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("the script needs %s, which is not installed", name)
		}
	}
	dir, err := os.MkdirTemp("/tmp", "unum-calls-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	p, err := unumtest.Start(unumtest.Options{
		Env: []string{"DIR=" + dir}, Command: []string{"bash", "-c", script + "\nread -r end"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	}()
	got, err := read(p, 60*time.Second)
	if err != nil {
		t.Fatalf("%v\nso far: %v\n%s", err, got, p.Dump())
	}
	for name, want := range map[string]string{
		"there": "0", "killed": "143",
		"signalled": "yes", "from": "0", "nobody": "1",
		"parent": got["shell"], "ppid": "True", "group": "True",
		"sent": "0", "one": "0", "two": "0", "three": "0", "left": "1",
		"survived": "", "own": "137",
		"stopped": "T", "running": "S",
	} {
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
	}
	for _, name := range []string{"bash", "dash", "wait4", "children", "grandchild"} {
		if v, err := strconv.ParseFloat(got[name], 64); err != nil || v < 0.03 {
			t.Errorf("user time as %s tells it: %q, want that of the loop", name, got[name])
		}
	}
}

// read collects the lines that the play prints; `time` prints to the standard
// error.
func read(p *unumtest.Play, limit time.Duration) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	got := map[string]string{}
	done := make(chan error, 1)
	lines := make(chan string, 256)
	go func() {
		r := bufio.NewReader(p.Stdout)
		for {
			l, err := r.ReadString('\n')
			if err != nil {
				if err != io.EOF {
					err = fmt.Errorf("read the play: %w", err)
				}
				done <- fmt.Errorf("the script ended early: %w", err)
				return
			}
			lines <- l
		}
	}()
	for {
		select {
		case l := <-lines:
			k, v, _ := strings.Cut(strings.TrimSpace(l), " ")
			if k == "end" {
				for l := range strings.Lines(p.Stderr()) {
					if v, ok := strings.CutPrefix(l, "bash "); ok {
						got["bash"] = strings.TrimSpace(v)
					}
				}
				return got, nil
			}
			got[k] = v
		case err := <-done:
			return got, err
		case <-ctx.Done():
			return got, ctx.Err()
		}
	}
}
