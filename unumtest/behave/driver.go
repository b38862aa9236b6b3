package behave

import (
	"bufio"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// The driver is this package inside a play. It reads requests from its
// standard input and writes answers to its standard output, in gob, which leaves
// any bytes as they are; any number of them at a time.

type request struct {
	ID      int
	Case    string
	Mode    Mode
	Timeout time.Duration
}

type answer struct {
	ID     int
	Result *Result
}

// Drive serves requests until in ends.
func Drive(r *Runner, cases []*Case, in io.Reader, out io.Writer) error {
	byName := map[string]*Case{}
	for _, c := range cases {
		byName[c.Name] = c
	}
	var mu sync.Mutex // guards enc
	enc := gob.NewEncoder(out)
	send := func(a answer) error {
		mu.Lock()
		defer mu.Unlock()
		return enc.Encode(a)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	if err := send(answer{ID: 0}); err != nil { // ready
		return err
	}
	dec := gob.NewDecoder(in)
	for {
		var q request
		if err := dec.Decode(&q); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		wg.Go(func() {
			c := byName[q.Case]
			if c == nil {
				send(answer{q.ID, &Result{Fault: "the driver has no such case"}})
				return
			}
			timed := *c
			timed.Timeout = q.Timeout
			send(answer{q.ID, r.Run(ctx, &timed, q.Mode)})
		})
	}
}

// Client talks to a driver.
type Client struct {
	in    io.WriteCloser
	Ready chan struct{} // closed when the driver has said hello
	Gone  chan struct{} // closed when the driver's output ended

	mu   sync.Mutex
	enc  *gob.Encoder
	next int
	wait map[int]chan *Result
}

// NewClient talks to a driver through its standard input and output.
func NewClient(in io.WriteCloser, out io.Reader) *Client {
	c := &Client{in: in, enc: gob.NewEncoder(in), Ready: make(chan struct{}), Gone: make(chan struct{}), next: 1, wait: map[int]chan *Result{}}
	go func() {
		defer close(c.Gone)
		dec := gob.NewDecoder(bufio.NewReader(out))
		for {
			var a answer
			if dec.Decode(&a) != nil {
				return
			}
			if a.ID == 0 {
				close(c.Ready)
				continue
			}
			c.mu.Lock()
			ch := c.wait[a.ID]
			delete(c.wait, a.ID)
			c.mu.Unlock()
			if ch != nil {
				ch <- a.Result
			}
		}
	}()
	return c
}

// Run asks the driver for one run.
func (c *Client) Run(ctx context.Context, cs *Case, m Mode) (*Result, error) {
	ch := make(chan *Result, 1)
	c.mu.Lock()
	id := c.next
	c.next++
	c.wait[id] = ch
	err := c.enc.Encode(request{id, cs.Name, m, cs.Timeout})
	c.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("ask the driver: %w", err)
	}
	select {
	case r := <-ch:
		return r, nil
	case <-c.Gone:
		return nil, errors.New("the driver is gone")
	case <-ctx.Done():
		return nil, fmt.Errorf("the driver does not answer: %w", ctx.Err())
	}
}

// Close ends the driver's input, and so the driver.
func (c *Client) Close() error { return c.in.Close() }
