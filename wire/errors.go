package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"

	"github.com/vmihailenco/msgpack/v5"

	"unum"
)

// RemoteError is an error of a peer's handler. Its text is the text at the
// peer, and errors.Is and errors.As find the sentinels of package unum and the
// errno that were in it.
type RemoteError struct {
	text   string
	causes []error
}

func (e *RemoteError) Error() string   { return e.text }
func (e *RemoteError) Unwrap() []error { return e.causes }

// known lists, beside unum.Sentinels, what may cross.
var known = map[string]error{
	"eof": io.EOF, "short": io.ErrUnexpectedEOF, "canceled": context.Canceled,
	"deadline": context.DeadlineExceeded, "closed": fs.ErrClosed,
	"not-exist": fs.ErrNotExist, "exist": fs.ErrExist, "permission": fs.ErrPermission,
}

type errorBody struct {
	Text  string   `msgpack:"t"`
	Names []string `msgpack:"n,omitempty"`
	Errno int      `msgpack:"e,omitempty"`
	Plain bool     `msgpack:"p,omitempty"` // it was the sentinel or errno itself
}

func encodeError(err error) []byte {
	b := errorBody{Text: err.Error()}
	for _, m := range []map[string]error{unum.Sentinels, known} {
		for name, s := range m {
			if errors.Is(err, s) {
				b.Names = append(b.Names, name)
			}
			if err == s {
				b.Names, b.Plain = []string{name}, true
				out, _ := msgpack.Marshal(&b)
				return out
			}
		}
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		b.Errno = int(errno)
		if err == error(errno) {
			b.Names, b.Plain = nil, true
		}
	}
	out, _ := msgpack.Marshal(&b) // strings and numbers only: cannot fail
	return out
}

func decodeError(data []byte) error {
	var b errorBody
	if err := msgpack.Unmarshal(data, &b); err != nil {
		return fmt.Errorf("%w: an error that cannot be read: %w", errProtocol, err)
	}
	e := &RemoteError{text: b.Text}
	for _, name := range b.Names {
		s := unum.Sentinels[name]
		if s == nil {
			s = known[name]
		}
		if s != nil {
			e.causes = append(e.causes, s)
		}
	}
	if b.Errno != 0 {
		e.causes = append(e.causes, syscall.Errno(b.Errno))
	}
	if b.Plain && len(e.causes) == 1 {
		return e.causes[0]
	}
	return e
}
