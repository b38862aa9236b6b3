package ctl

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// typist is a terminal with somebody at it.
type typist struct {
	t        *testing.T
	kb       *os.File // the master: what is typed, what is seen
	tty      *os.File
	seen     chan []byte
	all      bytes.Buffer
	deadline time.Time
}

func newTypist(t *testing.T) *typist {
	m, s, err := pty.Open()
	if err != nil {
		t.Skip("no terminals here:", err)
	}
	u := &typist{t: t, kb: m, tty: s, seen: make(chan []byte, 64), deadline: time.Now().Add(15 * time.Second)}
	go func() {
		defer close(u.seen)
		for {
			b := make([]byte, 4096)
			n, err := m.Read(b)
			if err != nil {
				return
			}
			u.seen <- b[:n]
		}
	}()
	t.Cleanup(func() { s.Close(); m.Close() })
	return u
}

// expect waits until want has been seen since the last call.
func (u *typist) expect(want string) {
	u.t.Helper()
	for !strings.Contains(u.all.String(), want) {
		select {
		case b := <-u.seen:
			u.all.Write(b)
		case <-time.After(time.Until(u.deadline)):
			u.t.Fatalf("waiting for %q, seen %q", want, u.all.String())
		}
	}
	_, rest, _ := strings.Cut(u.all.String(), want)
	u.all.Reset()
	u.all.WriteString(rest)
}

func (u *typist) run(r *rig, script string) chan ending {
	done := make(chan ending, 1)
	go func() {
		e, err := r.Run(testContext(u.t), sh(script), Stdio{u.tty, u.tty, u.tty})
		done <- ending{e, err}
	}()
	return done
}

func TestTerminal(t *testing.T) {
	r, u := newRig(t), newTypist(t)
	pty.Setsize(u.kb, &pty.Winsize{Rows: 30, Cols: 100})
	before, err := unix.IoctlGetTermios(int(u.tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	done := u.run(r, `trap "stty size" WINCH; tty >/dev/null && stty size; echo "now"; read x; echo "got $x"; echo next; read y; sleep 5; exit 1`)
	u.expect("30 100")
	u.expect("now")
	u.kb.WriteString("abc\r")
	u.expect("got abc")
	u.expect("next")
	pty.Setsize(u.kb, &pty.Winsize{Rows: 41, Cols: 101})
	unix.Kill(unix.Getpid(), unix.SIGWINCH)
	u.expect("41 101")
	u.kb.WriteString("\x03") // Ctrl-C, made a signal by the world's terminal
	e := <-done
	if e.err != nil || e.exit.Signal != int(unix.SIGINT) {
		t.Errorf("%+v, %v", e.exit, e.err)
	}
	after, err := unix.IoctlGetTermios(int(u.tty.Fd()), unix.TCGETS)
	if err != nil || *after != *before {
		t.Errorf("the terminal was not restored: %+v, %+v, %v", before, after, err)
	}
}

// All output is there when Run returns, and nothing typed afterwards is taken.
func TestTerminalOutputComplete(t *testing.T) {
	r, u := newRig(t), newTypist(t)
	for range 10 {
		done := u.run(r, `i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done; echo the-end; exit 9`)
		u.expect("line 499")
		u.expect("the-end")
		if e := <-done; e.err != nil || e.exit.Code != 9 {
			t.Fatalf("%+v, %v", e.exit, e.err)
		}
	}
	u.kb.WriteString("for the shell\r")
	b := make([]byte, 64)
	n, err := u.tty.Read(b)
	if err != nil || string(b[:n]) != "for the shell\n" {
		t.Errorf("%q, %v", b[:n], err)
	}
}

// The daemon's death does not hang up the terminal.
func TestTerminalOverRestart(t *testing.T) {
	r, u := newRig(t), newTypist(t)
	done := u.run(r, `echo here; read x; echo "got $x"; exit 4`)
	u.expect("here")
	r.restart()
	u.kb.WriteString("still\r")
	u.expect("got still")
	if e := <-done; e.err != nil || e.exit.Code != 4 {
		t.Fatalf("%+v, %v", e.exit, e.err)
	}
}
