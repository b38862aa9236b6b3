package probe

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/creack/pty"
	"golang.org/x/term"
)

// The operations that measure what carrying a descriptor costs: each starts a
// child that is placed by env, and talks to it through what it carries.

func (s *server) child(env []string, role ...string) *exec.Cmd {
	cmd := exec.Command(s.self, append([]string{"probe"}, role...)...)
	cmd.Env = env
	return cmd
}

func (s *server) ping(env []string, n int) ([]int64, error) {
	cmd := s.child(env, roleEcho)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ns, err := roundTrips(out, in, n)
	in.Close()
	if werr := cmd.Wait(); err == nil {
		err = werr
	}
	return ns, err
}

// roundTrips writes a byte and reads one, n times and a few more to warm up.
func roundTrips(r io.Reader, w io.Writer, n int) ([]int64, error) {
	const warm = 20
	b := []byte{'x'}
	ns := make([]int64, 0, n)
	for i := range n + warm {
		t := time.Now()
		if _, err := w.Write(b); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, fmt.Errorf("round trip %d: %w", i, err)
		}
		if i >= warm {
			ns = append(ns, int64(time.Since(t)))
		}
	}
	return ns, nil
}

func (s *server) pipe(env []string, n int) ([]int64, error) {
	cmd := s.child(env, roleCopy)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	// Before the first byte is back, the child has been placed.
	if _, err := roundTrips(out, in, 1); err != nil {
		return nil, err
	}
	sent := make(chan error, 1)
	t := time.Now()
	go func() {
		buf := make([]byte, 64<<10)
		var err error
		for left := n; left > 0 && err == nil; left -= len(buf) {
			_, err = in.Write(buf[:min(left, len(buf))])
		}
		in.Close()
		sent <- err
	}()
	got, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{out}, make([]byte, 64<<10))
	took := time.Since(t)
	if serr := <-sent; err == nil {
		err = serr
	}
	if werr := cmd.Wait(); err == nil {
		err = werr
	}
	if err == nil && got != int64(n) {
		err = fmt.Errorf("%d of %d bytes came through", got, n)
	}
	return []int64{int64(took)}, err
}

func (s *server) key(env []string, n int) ([]int64, error) {
	cmd := s.child(env, roleRaw)
	p, err := pty.Start(cmd)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	defer cmd.Wait()
	defer cmd.Process.Kill()
	// The child says when the terminal is raw.
	ready := make([]byte, 1)
	if _, err := io.ReadFull(p, ready); err != nil {
		return nil, err
	}
	return roundTrips(p, p, n)
}

func (s *server) log(env []string, dir string, n int) ([]int64, error) {
	f, err := os.CreateTemp(dir, "log")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	cmd := s.child(env, roleAppend, strconv.Itoa(n))
	// The child's standard output is the same open file as f, which this
	// process keeps: its offset is shared.
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = f, &said
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, said.Bytes())
	}
	if pos, err := f.Seek(0, io.SeekCurrent); err != nil || pos != int64(n)*4096 {
		return nil, fmt.Errorf("the shared offset is %d after %d writes: %v", pos, n, err)
	}
	var ns []int64
	return ns, json.Unmarshal(said.Bytes(), &ns)
}

func echo() error {
	b := make([]byte, 1)
	for {
		if _, err := os.Stdin.Read(b); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if _, err := os.Stdout.Write(b); err != nil {
			return err
		}
	}
}

// copyAll is cat: reads and writes of 64 KiB. It gives back at once what the
// driver's first round trips send.
func copyAll() error {
	buf := make([]byte, 64<<10)
	for {
		n, err := os.Stdin.Read(buf)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := os.Stdout.Write(buf[:n]); err != nil {
			return err
		}
	}
}

func raw() error {
	old, err := term.MakeRaw(0)
	if err != nil {
		return err
	}
	defer term.Restore(0, old)
	if _, err := os.Stdout.WriteString("R"); err != nil {
		return err
	}
	return echo()
}

func appendLog(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	buf := bytes.Repeat([]byte("0123456789abcde\n"), 256)
	ns := make([]int64, 0, n)
	for range n {
		t := time.Now()
		if _, err := os.Stdout.Write(buf); err != nil {
			return err
		}
		ns = append(ns, int64(time.Since(t)))
	}
	w := bufio.NewWriter(os.Stderr)
	if err := json.NewEncoder(w).Encode(ns); err != nil {
		return err
	}
	return w.Flush()
}
