package fsnode

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// python runs a script as a body with f as its descriptor 1 and returns what
// it prints on standard error's place, descriptor 3.
func python(t *testing.T, p *pair, f *os.File, script string) string {
	t.Helper()
	out := temp(t, os.O_RDWR|os.O_APPEND, "")
	c := p.carry(f)
	cmd := command(t, "python3", "-ISc", "import os,sys,fcntl,mmap,struct,errno\ndef say(*a): os.write(3,(' '.join(map(str,a))+'\\n').encode())\n"+script)
	cmd.Stdout, cmd.ExtraFiles = c.file, []*os.File{out}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.started()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	c.ended()
	return strings.TrimSpace(content(t, out))
}

func TestCallsOnSharedFile(t *testing.T) {
	p := newPair(t)
	for name, c := range map[string]struct {
		script, want, content string
		pos                   int64
	}{
		"fstat":      {"s=os.fstat(1); say(s.st_size,oct(s.st_mode))", "10 0o100644", "0123456789", 3},
		"ftruncate":  {"os.ftruncate(1,4); say(os.fstat(1).st_size)", "4", "0123", 3},
		"start":      {"say(os.lseek(1,0,1), os.read(1,2))", "3 b'34'", "0123456789", 5},
		"seek end":   {"say(os.lseek(1,-2,2), os.read(1,5))", "8 b'89'", "0123456789", 10},
		"pread":      {"say(os.pread(1,2,6)); say(os.read(1,1))", "b'67'\nb'3'", "0123456789", 4},
		"pread at P": {"say(os.pread(1,2,3)); say(os.read(1,1))", "b'34'\nb'3'", "0123456789", 4},
		"pwrite":     {"os.pwrite(1,b'xx',3); os.write(1,b'y')", "", "012yx56789", 4},
		"preadv":     {"b=bytearray(2); os.preadv(1,[b],6); say(b); c=bytearray(1); os.readv(1,[c]); say(c)", "bytearray(b'67')\nbytearray(b'3')", "0123456789", 4},
		"seek only":  {"os.lseek(1,7,0)", "", "0123456789", 7},
		"dup":        {"d=os.dup(1); os.write(d,b'a'); os.write(1,b'b')", "", "012ab56789", 5},
		"fsync":      {"os.fsync(1); os.fdatasync(1)", "", "0123456789", 3},
		"fallocate":  {"os.posix_fallocate(1,0,20); say(os.fstat(1).st_size)", "20", "0123456789" + strings.Repeat("\x00", 10), 3},
		"read end":   {"os.lseek(1,0,2); say(os.read(1,5))", "b''", "0123456789", 10},
		"fchmod":     {"os.fchmod(1,0o600); say(oct(os.fstat(1).st_mode))", "0o100600", "0123456789", 3},
		"append":     {"fcntl.fcntl(1,fcntl.F_SETFL,os.O_APPEND); os.write(1,b'z')", "", "0123456789", -1},
		"sendfile":   {"r,w=os.pipe(); say(os.sendfile(w,1,0,10), os.read(r,20))", "10 b'0123456789'", "0123456789", 3},
		"isatty":     {"say(os.isatty(1))", "False", "0123456789", 3},
		"copy range": {"f=os.open('/dev/shm',os.O_TMPFILE|os.O_RDWR)\ntry: say(os.copy_file_range(1,f,5,0))\nexcept OSError as e: say(e.errno in (errno.EINVAL,errno.EXDEV))", "True", "0123456789", 3},
		"reopen":     {"f=os.open('/proc/self/fd/1',os.O_RDWR); say(os.read(f,2)); os.write(f,b'ab'); say(os.read(1,1)); os.close(f)", "b'01'\nb'b'", "01ab456789", 4},
		"truncating reopen": {"f=os.open('/dev/stdout',os.O_WRONLY|os.O_TRUNC|os.O_CREAT); os.write(f,b'new')",
			"", "new", 3},
		"private map": {"m=mmap.mmap(1,10,flags=mmap.MAP_PRIVATE); say(m[2:5]); m[0]=65", "b'234'", "0123456789", 3},
		"shared map":  {"m=mmap.mmap(1,10); say(m[2:5]); m[0:2]=b'AB'; m.flush(); m.close()", "b'234'", "AB23456789", 3},
	} {
		t.Run(name, func(t *testing.T) {
			f := temp(t, os.O_RDWR, "0123456789")
			f.Seek(3, 0)
			if got := python(t, p, f, c.script); got != c.want {
				t.Errorf("body saw %q, want %q", got, c.want)
			}
			want := c.content
			if name == "append" {
				want += "z"
			}
			if got := content(t, f); got != want {
				t.Errorf("content %q, want %q", got, want)
			}
			if pos, _ := f.Seek(0, 1); c.pos >= 0 && pos != c.pos {
				t.Errorf("position at home %d, want %d", pos, c.pos)
			}
		})
	}
}

// flock through a carried description is a lock of that description.
func TestFlock(t *testing.T) {
	p := newPair(t)
	f := temp(t, os.O_RDWR, "")
	other, err := os.OpenFile(f.Name(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if got := python(t, p, f, "fcntl.flock(1,fcntl.LOCK_EX)"); got != "" {
		t.Error(got)
	}
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EAGAIN {
		t.Errorf("the lock went with the body: %v", err)
	}
	unix.Flock(int(f.Fd()), unix.LOCK_UN)
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	const try = "try: fcntl.flock(1,fcntl.LOCK_EX|fcntl.LOCK_NB); say('got')\nexcept BlockingIOError: say('busy')"
	if got := python(t, p, f, try); got != "busy" {
		t.Errorf("body: %s", got)
	}
	time.AfterFunc(100*time.Millisecond, func() { unix.Flock(int(other.Fd()), unix.LOCK_UN) })
	if got := python(t, p, f, "fcntl.flock(1,fcntl.LOCK_EX); say('got')"); got != "got" {
		t.Errorf("waiting body: %s", got)
	}
	// A signal ends the wait.
	unix.Flock(int(f.Fd()), unix.LOCK_UN)
	unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if got := python(t, p, f, `
import signal
class A(Exception): pass
def h(*a): raise A
signal.signal(signal.SIGALRM,h); signal.setitimer(signal.ITIMER_REAL,0.1)
try: fcntl.flock(1,fcntl.LOCK_EX); say('got')
except A: say('alarm')`); got != "alarm" {
		t.Errorf("interrupted body: %s", got)
	}
}

// Record locks conflict with those of processes at home and end with the
// body that took them.
func TestRecordLocks(t *testing.T) {
	p := newPair(t)
	f := temp(t, os.O_RDWR, "0123456789")
	other, err := os.OpenFile(f.Name(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	lock := func(typ int16, start, n int64) error {
		fl := unix.Flock_t{Type: typ, Start: start, Len: n}
		return unix.FcntlFlock(other.Fd(), unix.F_OFD_SETLK, &fl)
	}
	if err := lock(unix.F_WRLCK, 0, 4); err != nil {
		t.Fatal(err)
	}
	const script = `
def lock(start,n):
    try: fcntl.lockf(1,fcntl.LOCK_EX|fcntl.LOCK_NB,n,start); return 'got'
    except OSError: return 'busy'
say(lock(2,4), lock(4,4))
if os.fork()==0:
    say(lock(4,2)); os._exit(0)
os.wait()
`
	if got := python(t, p, f, script); got != "busy got\nbusy" {
		t.Errorf("body: %q", got)
	}
	waitFor(t, func() bool { return lock(unix.F_WRLCK, 4, 4) == nil })
}

// An ordinary user does not gain by a reopen what the file does not give.
func TestReopenChecksTheUser(t *testing.T) {
	p := newPair(t)
	f := temp(t, os.O_WRONLY, "")
	f.Chmod(0o600)
	os.Chmod(filepath.Dir(f.Name()), 0o755)
	const script = `os.setgroups([]); os.setgid(1234); os.setuid(1234)
try: os.open('/proc/self/fd/1',os.O_WRONLY); say('opened')
except PermissionError: say('refused')
try: os.fchmod(1,0o666); say('changed')
except PermissionError: say('refused')
os.write(1,b'x')`
	if got := python(t, p, f, script); got != "refused\nrefused" {
		t.Errorf("body: %q", got)
	}
	if got := content(t, f); got != "x" {
		t.Errorf("content %q", got)
	}
}

// A child that outlives the body goes on using the description.
func TestChildOutlivesBody(t *testing.T) {
	p := newPair(t)
	f := temp(t, os.O_RDWR, "")
	if err := p.body(nil, f, "sh", "-c", "(sleep 0.3; echo child) & echo body"); err != nil {
		t.Fatal(err)
	}
	f.WriteString("home\n")
	waitFor(t, func() bool { return content(t, f) == "body\nhome\nchild\n" })
}

// A deleted file has no name to reopen: a here-document of many shells.
func TestDeletedFile(t *testing.T) {
	p := newPair(t)
	f := temp(t, os.O_RDONLY, "here\n")
	out := temp(t, os.O_RDWR, "")
	os.Remove(f.Name())
	if err := p.body(f, out, "cat"); err != nil {
		t.Fatal(err)
	}
	if got := content(t, out); got != "here\n" {
		t.Errorf("got %q", got)
	}
}
