package tty

import (
	"bytes"

	"golang.org/x/sys/unix"

	"unum/sys"
)

// putBack puts input that a body did not read in front of the terminal's queue,
// as if it had never been taken: what is queued is read, and all of it typed in
// again without echo. eof says that an end of file follows b.
//
// Home's modes are changed for some microseconds and set as they were.
func putBack(fd int, b []byte, eof bool) error {
	if len(b) == 0 && !eof {
		return nil
	}
	was, err := sys.TtyAttr(fd)
	if err != nil {
		return err
	}
	if was.Lflag&sys.EXTPROC != 0 {
		return putBackRaw(fd, was, b, eof)
	}
	defer sys.SetTtyAttr(fd, was)
	canon := was.Lflag&unix.ICANON != 0
	var typed []byte
	line := func(b []byte, ended bool) {
		if !canon {
			typed = append(typed, b...)
			return
		}
		typed = append(typed, quote(was, b)...)
		if ended && !terminated(was, b) {
			typed = append(typed, was.Cc[unix.VEOF])
		}
	}
	line(b, len(b) > 0)
	if eof && canon {
		typed = append(typed, was.Cc[unix.VEOF])
	}
	buf := make([]byte, 4096)
	if canon {
		for i := 0; i < 4096; i++ { // complete lines; an empty one is an end of file
			n, err := readNow(fd, buf)
			if err != nil {
				break
			}
			line(buf[:n], true)
		}
	}
	quiet := *was
	quiet.Lflag &^= unix.ECHO | unix.ECHONL | unix.ISIG
	quiet.Iflag &^= unix.ICRNL | unix.INLCR | unix.IGNCR | unix.ISTRIP | unix.IUCLC | unix.IXON | unix.IXANY | unix.PARMRK
	raw := quiet
	raw.Lflag &^= unix.ICANON
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := sys.SetTtyAttr(fd, &raw); err != nil {
		return err
	}
	for {
		n, err := readNow(fd, buf)
		if err != nil || n == 0 {
			break
		}
		line(buf[:n], false)
	}
	if err := sys.SetTtyAttr(fd, &quiet); err != nil {
		return err
	}
	for _, c := range typed {
		if err := sys.TtyInsert(fd, c); err != nil {
			return err
		}
	}
	return nil
}

// readNow reads if there is something to read; EAGAIN otherwise.
func readNow(fd int, buf []byte) (int, error) {
	re, err := sys.PollFD(fd, unix.POLLIN)
	if err != nil {
		return 0, err
	}
	if re&unix.POLLIN == 0 {
		return 0, unix.EAGAIN
	}
	return unix.Read(fd, buf)
}

// terminated says whether a canonical read of b ended at a line's end, rather
// than at an end-of-file character.
func terminated(t *unix.Termios, b []byte) bool {
	if len(b) == 0 {
		return false
	}
	c := b[len(b)-1]
	return c == '\n' || c != 0 && (c == t.Cc[unix.VEOL] || c == t.Cc[unix.VEOL2])
}

// quote puts VLNEXT before characters that would edit the line.
func quote(t *unix.Termios, b []byte) []byte {
	if t.Lflag&unix.IEXTEN == 0 || t.Cc[unix.VLNEXT] == 0 {
		return b
	}
	var special []byte
	for _, i := range []int{unix.VERASE, unix.VKILL, unix.VEOF, unix.VWERASE, unix.VREPRINT, unix.VLNEXT} {
		if c := t.Cc[i]; c != 0 {
			special = append(special, c)
		}
	}
	var out []byte
	for _, c := range b {
		if bytes.IndexByte(special, c) >= 0 {
			out = append(out, t.Cc[unix.VLNEXT])
		}
		out = append(out, c)
	}
	return out
}

// putBackRaw does it where the line discipline is elsewhere: what is typed in is
// neither edited nor echoed, and no modes need to change.
func putBackRaw(fd int, t *unix.Termios, b []byte, eof bool) error {
	buf := make([]byte, 4096)
	for len(b) < 4096 {
		n, err := readNow(fd, buf)
		if err != nil {
			break
		}
		eof = eof || n == 0
		b = append(b, buf[:n]...)
		if n == 0 {
			break
		}
	}
	if len(b) == 0 && eof && t.Lflag&unix.ICANON != 0 {
		b = []byte{t.Cc[unix.VEOF]}
	}
	for _, c := range b {
		if err := sys.TtyInsert(fd, c); err != nil {
			return err
		}
	}
	return nil
}
