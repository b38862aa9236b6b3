package unumtest

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The table "What dies, and what then" of the architecture, a test for a row.
// "Known" is when the cluster has noticed; from then on a parent waits two
// seconds at most.
const (
	known  = 2 * time.Second
	lease  = 10 * time.Second
	notice = known + 3*time.Second // silence, suspicion, declaration, then known
)

const oneBody = `
UNUM_NODE=n2 bt sleep 300000 & p=$!
echo pid $p
wait $p; echo status $?
read line
`

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestBodyDies(t *testing.T) {
	w := start(t, oneBody)
	pid := atoi(t, w.want(20*time.Second, `^pid (\d+)`)[1])
	w.kill(w.find("n2", pid, false))
	w.want(known, `^status 137`)
}

func TestDeputyDies(t *testing.T) {
	w := start(t, oneBody)
	pid := atoi(t, w.want(20*time.Second, `^pid (\d+)`)[1])
	body := w.find("n2", pid, false)
	w.kill(w.find("n1", pid, true))
	w.want(known, `^status 137`)
	w.gone(body, known)
}

func TestNodeOfBodyDies(t *testing.T) {
	t.Parallel() // it mostly waits for a lease to end
	w := start(t, oneBody)
	pid := atoi(t, w.want(20*time.Second, `^pid (\d+)`)[1])
	w.find("n2", pid, false)
	w.kill(w.node("n2").Pid)
	w.want(lease+notice, `^status 137`)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	out, err := w.play.Unum(ctx, "why", strconv.Itoa(pid))
	if err != nil || !strings.Contains(out, "n2") {
		t.Errorf("unum why %d does not name the lost node: %q %v", pid, out, err)
	}
}

// A shell that was placed has children of its own there: n2 is their home.
func TestHomeNodeDies(t *testing.T) {
	t.Parallel() // it mostly waits for a lease to end
	w := start(t, `
UNUM_NODE=n2 bash -c 'UNUM_NODE=n3 bt sleep 300000 & echo pid $!; wait' & p=$!
wait $p; echo status $?
read line
`)
	pid := atoi(t, w.want(20*time.Second, `^pid (\d+)`)[1])
	body := w.find("n3", pid, false)
	w.kill(w.node("n2").Pid)
	w.want(lease+notice, `^status 137`)
	w.gone(body, lease+notice)
}

const pipeline = `
while read n; do
	echo started
	(UNUM_NODE=n2 bt spew $n | UNUM_NODE=n3 cat | UNUM_NODE=n2 bt sum; echo status ${PIPESTATUS[*]}) &
	wait
	bt spew $n | bt sum
done
`

// over says whether the script has said something that was not read: that
// what was asked of it last is done.
func (w *world) over() bool { return len(w.lines) > 0 }

// pipelineSums does something again and again while a pipeline over three
// nodes runs, and holds that no byte is lost or doubled. If it came too late
// there is more to be done the next time.
func pipelineSums(t *testing.T, kills int, what func(w *world, i int)) {
	n := 64 << 20
	limit := 60 * time.Second
	if Long() {
		n, limit = 1<<30, 10*time.Minute
	}
	w := start(t, pipeline)
	for hit := 0; hit == 0; n, limit = 4*n, 4*limit {
		w.say(strconv.Itoa(n))
		w.want(20*time.Second, `^started`)
		for i := range kills {
			time.Sleep(300 * time.Millisecond)
			if w.over() {
				break
			}
			what(w, i)
			hit++
		}
		placed := w.want(limit, `(\d+ bytes, sum \w+)`)[1]
		w.want(5*time.Second, `^status 0 0 0`)
		native := w.want(limit, `(\d+ bytes, sum \w+)`)[1]
		if placed != native {
			t.Errorf("through the nodes: %s; at home: %s", placed, native)
		}
		t.Logf("%d times in %d MiB", hit, n>>20)
	}
}

func TestHomeDaemonDiesInPipeline(t *testing.T) {
	pipelineSums(t, 1, func(w *world, i int) { w.kill(w.node("n1").Daemon()) })
}

func TestGuestDaemonDiesInPipeline(t *testing.T) {
	pipelineSums(t, 1, func(w *world, i int) { w.kill(w.node("n2").Daemon()) })
}

func TestDaemonsDieInPipelineAgainAndAgain(t *testing.T) {
	needLong(t)
	pipelineSums(t, 12, func(w *world, i int) {
		w.kill(w.node(fmt.Sprintf("n%d", i%3+1)).Daemon())
		time.Sleep(2 * time.Second)
	})
}

func TestNetworkCutForAMomentInPipeline(t *testing.T) {
	pipelineSums(t, 1, func(w *world, i int) {
		w.cut("n2", true)
		time.Sleep(100 * time.Millisecond)
		w.cut("n2", false)
	})
}

// A cut that is long enough for the node to be declared lost, and then heals:
// its guests were told dead, so they must be.
func TestNetworkHealsAfterTheNodeWasDeclaredLost(t *testing.T) {
	t.Parallel() // it mostly waits for a lease to end
	w := start(t, oneBody+`
UNUM_NODE=n2 sh -c 'exit 7'; echo after $?
read line
`)
	pid := atoi(t, w.want(20*time.Second, `^pid (\d+)`)[1])
	body := w.find("n2", pid, false)
	w.cut("n2", true)
	w.want(lease+notice, `^status 137`)
	w.cut("n2", false)
	w.gone(body, known)
	time.Sleep(3 * time.Second)
	w.say("go")
	w.want(5*time.Second, `^after 7`)
}

// cut takes the node's one link down or up, in its network namespace.
func (w *world) cut(node string, down bool) {
	w.t.Helper()
	state := "up"
	if down {
		state = "down"
	}
	script := `for d in /sys/class/net/*; do :; done; ip -o link | awk -F': ' '$2 !~ /^lo/ {sub(/@.*/, "", $2); print $2}' | while read d; do ip link set $d ` + state + `; done`
	out, err := exec.Command("nsenter", "--target", strconv.Itoa(w.node(node).Pid), "--net", "--", "sh", "-c", script).CombinedOutput()
	if err != nil {
		w.t.Fatalf("take the link of %s %s: %v: %s", node, state, err, out)
	}
}

// The network stays cut: one side is declared lost, the parent learns of it,
// and the side without a lease kills its guests.
func TestNetworkCutForGood(t *testing.T) {
	t.Parallel() // it mostly waits for a lease to end
	w := start(t, oneBody)
	pid := atoi(t, w.want(20*time.Second, `^pid (\d+)`)[1])
	body := w.find("n2", pid, false)
	w.cut("n2", true)
	w.want(lease+notice, `^status 137`)
	w.gone(body, lease+notice)
}

// A daemon that is not back within the lease counts as a lost node.
func TestGuestDaemonStopsForGood(t *testing.T) {
	needLong(t)
	t.Parallel()
	w := start(t, oneBody)
	pid := atoi(t, w.want(20*time.Second, `^pid (\d+)`)[1])
	body := w.find("n2", pid, false)
	d := w.node("n2").Daemon()
	if err := syscall.Kill(d, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	w.want(lease+notice, `^status 137`)
	w.gone(body, lease+notice)
}

// Bodies, waits and signals outlive both daemons.
func TestDaemonsDieUnderAJob(t *testing.T) {
	for _, node := range []string{"n1", "n2"} {
		t.Run(node, func(t *testing.T) {
			w := start(t, `
export UNUM_NODE=n2
sh -c 'trap "echo got term; exit 5" TERM; echo ready; while :; do sleep 0.1; done' & p=$!
read line
kill -TERM $p
wait $p; echo status $?
sh -c 'exit 6'; echo after $?
read line
`)
			w.want(20*time.Second, `^ready`)
			d := w.node(node).Daemon()
			w.kill(d)
			w.say("go")
			w.want(lease, `^got term`)
			w.want(5*time.Second, `^status 5`)
			w.want(5*time.Second, `^after 6`)
		})
	}
}

// The file server process serves what several writers share.
func TestFileServerDiesUnderWriters(t *testing.T) {
	w := start(t, `
while read n; do
	echo started
	(export UNUM_NODE=elsewhere
	bt records $n 100 a & bt records $n 100 b & bt records $n 100 c & wait) > f 2> s
	sort f | uniq -c | awk '{print "lines", $1, length($2)}'
	echo done
done
`)
	for n, hit := 20000, false; !hit; n *= 4 {
		w.say(strconv.Itoa(n))
		w.want(20*time.Second, `^started`)
		time.Sleep(time.Second)
		if hit = !w.over(); hit {
			for _, n := range []string{"n1", "n2", "n3"} {
				if p := w.node(n).FileServer(); p != 0 {
					w.kill(p)
				}
			}
		}
		for range 3 {
			w.want(2*time.Minute, fmt.Sprintf(`^lines %d 99$`, n))
		}
		w.want(5*time.Second, `^done`)
	}
}

const build = `
mkdir src; cd src
for i in $(seq 40); do
  { echo '#include <stdio.h>'; echo '#include <stdlib.h>'; for j in $(seq 60); do echo "int f${i}_$j(int x) { return x * $j + $i; }"; done; } > f$i.c
done
cat > Makefile <<'EOF'
OBJ := $(patsubst %,f%.o,$(shell seq 40))
all: $(OBJ)
	ld -r -o all.o $(OBJ)
EOF
export UNUM_NODE=elsewhere
while read n; do
	echo started
	r=0
	for i in $(seq $n); do
		UNUM_NODE=here rm -f f*.o all.o
		make -j6 > log 2>&1; r=$?
		[ $r = 0 ] || break
	done
	echo built $r
	read line
	[ "$line" = again ] || break
done
make -j6 >> log 2>&1; echo again $?
UNUM_NODE=here
cp all.o placed.o; rm -f f*.o all.o
make -j2 > /dev/null 2>&1; cmp all.o placed.o && echo same || ls -l
read line
`

// deathInBuild does something in the middle of a parallel build.
func deathInBuild(t *testing.T, goesOn bool, what func(w *world)) {
	w := start(t, build)
	for n, hit := 1, false; !hit; n *= 4 {
		w.say(strconv.Itoa(n))
		w.want(20*time.Second, `^started`)
		time.Sleep(700 * time.Millisecond)
		if hit = !w.over(); hit {
			what(w)
		}
		m := w.want(3*time.Minute, `^built (\d+)`)
		if (goesOn || !hit) && m[1] != "0" {
			t.Errorf("make ended with %s", m[1])
		}
		if hit {
			w.say("on")
		} else {
			w.say("again")
		}
	}
	w.want(90*time.Second, `^again 0`)
	w.want(3*time.Minute, `^same`) // natively, on two processors
}

func TestDaemonDiesInBuild(t *testing.T) {
	for _, node := range []string{"n1", "n2"} {
		t.Run(node, func(t *testing.T) {
			deathInBuild(t, true, func(w *world) { w.kill(w.node(node).Daemon()) })
		})
	}
}

func TestNodeDiesInBuild(t *testing.T) {
	deathInBuild(t, false, func(w *world) { w.kill(w.node("n3").Pid) })
}

func TestNetworkCutInBuild(t *testing.T) {
	deathInBuild(t, false, func(w *world) { w.cut("n3", true) })
}

// Whatever kills `unum play`, nothing of it stays, and the next one starts.
func TestPlayIsKilled(t *testing.T) {
	w := start(t, oneBody)
	w.want(20*time.Second, `^pid (\d+)`)
	w.trace.Look()
	w.play.Kill()
	// Directories and cgroups are cleared by the next play.
	for _, l := range w.trace.Living(5 * time.Second) {
		t.Errorf("after a kill of the play: %s", l)
	}
	w2 := start(t, "echo up; read line")
	w2.want(20*time.Second, `^up`)
	if left := w.trace.Left(5 * time.Second); len(left) > 0 {
		t.Errorf("the next play did not clear:\n%s", strings.Join(left, "\n"))
	}
}
