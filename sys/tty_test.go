package sys

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPty(t *testing.T) {
	m, n, err := OpenPty("/dev/pts")
	if err != nil {
		t.Skip(err)
	}
	defer m.Close()
	s, err := OpenSlave(int(m.Fd()), unix.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	sfd := int(s.Fd())
	dev, err := TtyDev(sfd)
	if err != nil || unix.Minor(uint64(dev)) != uint32(n) {
		t.Fatalf("device %#x, number %d: %v", dev, n, err)
	}
	a, err := TtyAttr(sfd)
	if err != nil {
		t.Fatal(err)
	}
	a.Lflag |= EXTPROC
	if err := SetTtyAttr(sfd, a); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := LockTtyAttr(sfd, &unix.Termios{Lflag: EXTPROC}); err != nil {
			t.Fatal(err)
		}
		a.Lflag &^= EXTPROC
		if err := SetTtyAttr(sfd, a); err != nil {
			t.Fatal(err)
		}
		if a, _ = TtyAttr(sfd); a.Lflag&EXTPROC == 0 {
			t.Fatal("a locked bit was cleared")
		}
	}
	if _, err := m.Write([]byte("abc")); err != nil {
		t.Fatal(err)
	}
	if n, err := TtyInput(sfd); n != 3 || err != nil {
		t.Fatalf("%d bytes of input: %v", n, err)
	}
}

func TestReadJob(t *testing.T) {
	j, err := ReadJob(os.Getpid(), nil)
	if err != nil || j.Pgrp != unix.Getpgrp() {
		t.Fatalf("%+v: %v", j, err)
	}
}
