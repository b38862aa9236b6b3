package deaths

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"

	"unum/unumtest"
)

// terminal is a bash on a terminal of the machine, by way of `unum run`.
type terminal struct {
	c    *cluster
	cmd  *exec.Cmd
	pty  *os.File
	done chan struct{}

	mu   sync.Mutex
	all  strings.Builder
	seen int
	more chan struct{}
}

// patience is how long a step of a dialogue may take: daemons come and go
// meanwhile.
const patience = 60 * time.Second

func (c *cluster) terminal() *terminal {
	c.t.Helper()
	r := &terminal{c: c, done: make(chan struct{}), more: make(chan struct{}, 1)}
	r.cmd = c.unum(context.Background(), "run", "-n", "here", "bash", "--norc", "--noprofile", "--noediting", "-i")
	r.cmd.Env = append(os.Environ(), "PS1=ready$ ", "HISTFILE=", "LC_ALL=C", "D="+c.dir)
	var err error
	if r.pty, err = pty.StartWithSize(r.cmd, &pty.Winsize{Rows: 24, Cols: 200}); err != nil {
		c.t.Fatal(err)
	}
	go func() {
		defer close(r.done)
		b := make([]byte, 4096)
		for {
			n, err := r.pty.Read(b)
			r.mu.Lock()
			r.all.Write(b[:n])
			r.mu.Unlock()
			select {
			case r.more <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	}()
	c.t.Cleanup(func() {
		r.cmd.Process.Kill()
		r.cmd.Wait()
		r.pty.Close()
		<-r.done
	})
	r.want("ready$ ")
	return r
}

// say types.
func (r *terminal) say(text string) {
	r.c.t.Helper()
	if _, err := r.pty.WriteString(text); err != nil {
		r.c.t.Fatalf("type %q: %v", text, err)
	}
}

// want waits for a text on the screen, behind what was wanted last.
func (r *terminal) want(text string) {
	r.c.t.Helper()
	late := time.After(patience)
	for {
		r.mu.Lock()
		all := r.all.String()
		i := strings.Index(all[r.seen:], text)
		if i >= 0 {
			r.seen += i + len(text)
		}
		rest := all[r.seen:]
		r.mu.Unlock()
		if i >= 0 {
			return
		}
		select {
		case <-r.more:
		case <-r.done:
			r.c.t.Fatalf("no %q: the terminal is closed after %q", text, clip(all))
		case <-late:
			r.c.dump()
			r.c.t.Fatalf("no %q, but %q, after %q", text, clip(rest), clip(all))
		}
	}
}

// round is a dialogue: a placed cat is stopped and goes on, another one is
// interrupted, and a placed shell reads a line and ends by a status.
func (r *terminal) round(i int) {
	r.c.t.Helper()
	line := func(s string) { // as it is echoed, and as cat writes it
		r.say(s + "\n")
		r.want(s + "\r\n" + s + "\r\n")
	}
	r.say("UNUM_NODE=n2 cat\n")
	r.want("cat\r\n")
	line(fmt.Sprintf("one %d", i))
	r.say("\x1a")
	r.want("Stopped")
	r.want("ready$ ")
	r.say("fg\n")
	r.want("cat\r\n")
	line(fmt.Sprintf("two %d", i))
	r.say("\x04")
	r.want("ready$ ")
	r.say("echo status=$?\n")
	r.want("status=0\r\n")
	r.want("ready$ ")
	r.say("UNUM_NODE=n2 cat\n")
	r.want("cat\r\n")
	line(fmt.Sprintf("three %d", i))
	r.say("\x03")
	r.want("ready$ ")
	r.say("echo status=$?\n")
	r.want("status=130\r\n")
	r.want("ready$ ")
	r.say("UNUM_NODE=n2 bash -c 'read x; echo got=$x; exit 9'\n")
	r.want("9'\r\n")
	r.say(fmt.Sprintf("four %d\n", i))
	r.want(fmt.Sprintf("got=four %d\r\n", i))
	r.want("ready$ ")
	r.say("echo status=$?\n")
	r.want("status=9\r\n")
	r.want("ready$ ")
}

// leave ends the shell.
func (r *terminal) leave() {
	r.c.t.Helper()
	r.say("exit 3\n")
	select {
	case <-r.done:
	case <-time.After(patience):
		r.c.t.Fatal("the shell does not end")
	}
	if r.cmd.Wait(); r.cmd.ProcessState.ExitCode() != 3 {
		r.c.t.Errorf("the shell ended with %v", r.cmd.ProcessState)
	}
}

// The same dialogue goes on while daemons die.
func TestDaemonTerminal(t *testing.T) {
	c := start(t, 2)
	lasts := 5 * time.Second
	if unumtest.Long() {
		lasts = time.Minute
	}
	for _, x := range who {
		t.Run(x.name, func(t *testing.T) {
			c.t = t
			term := c.terminal()
			over, done := make(chan struct{}), make(chan int)
			go func() {
				kills := 0
				for !closed(over) {
					time.Sleep(100*time.Millisecond + rand.N(500*time.Millisecond))
					for _, i := range x.nodes {
						if c.killService(i, "daemon") {
							kills++
						}
					}
					if rand.N(3) > 0 {
						for _, i := range x.nodes {
							c.awaitBeat(i, over)
						}
					}
				}
				done <- kills
			}()
			stop := sync.OnceValue(func() int { close(over); return <-done })
			defer stop()
			i := 0
			for end := time.Now().Add(lasts); time.Now().Before(end); i++ {
				term.round(i)
			}
			t.Logf("%d dialogues, %d kills", i, stop())
			term.leave()
			c.awaitBack()
		})
	}
}
