package tty

import (
	"encoding/json"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"unum/sys"
)

// The test binary plays three more parts: the deputy ("placed CMD" in a home
// shell), the guest's session agent, and the gate that a body waits behind.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "placed":
		deputyMain()
	case "ttyagent":
		agentMain()
	case "ttygate":
		gateMain()
	case "ttybody":
		bodyMain(os.Args[1])
	}
	os.Exit(m.Run())
}

// bodyMain waits for a line in one of several ways and prints it, or echoes
// keys in raw mode.
func bodyMain(how string) {
	b := make([]byte, 100)
	switch how {
	case "poll":
		_, err := unix.Poll([]unix.PollFd{{Fd: 0, Events: unix.POLLIN}}, -1)
		must(err)
	case "polls": // often and short
		for {
			if n, _ := unix.Poll([]unix.PollFd{{Fd: 0, Events: unix.POLLIN}}, 20); n > 0 {
				break
			}
		}
	case "select":
		var set unix.FdSet
		set.Set(0)
		_, err := unix.Select(1, &set, nil, nil, nil)
		must(err)
	case "epoll":
		ep, err := unix.EpollCreate1(0)
		must(err)
		must(unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, 0, &unix.EpollEvent{Events: unix.EPOLLIN}))
		_, err = unix.EpollWait(ep, make([]unix.EpollEvent, 1), -1)
		must(err)
	case "spin":
		must(unix.SetNonblock(0, true))
		for {
			n, err := unix.Read(0, b)
			if err == nil {
				os.Stdout.WriteString("got " + string(b[:n]))
				os.Exit(0)
			}
			time.Sleep(5 * time.Millisecond)
		}
	case "raw":
		was, err := sys.TtyAttr(0)
		must(err)
		raw := *was
		raw.Lflag &^= unix.ICANON | unix.ECHO | unix.ISIG
		raw.Iflag &^= unix.ICRNL
		raw.Oflag &^= unix.OPOST
		must(sys.SetTtyAttr(0, &raw))
		os.Stdout.WriteString("raw\r\n")
		for {
			n, err := unix.Read(0, b[:1])
			must(err)
			if b[0] == 'q' {
				break
			}
			_, _ = os.Stdout.Write(b[:n])
		}
		must(sys.SetTtyAttr(0, was))
		os.Exit(0)
	}
	n, err := unix.Read(0, b)
	must(err)
	os.Stdout.WriteString("got " + string(b[:n]))
	os.Exit(0)
}

// note is what the parts tell each other.
type note struct {
	What string // of the deputy: place, sig; of the agent: ctty, fg, start, go, kill, event
	Args []string
	Env  []string
	Dir  string
	N    int
	Pid  int
	Pgid int
	Nums []int
	Code int
	Sig  int
	Err  string
}

func sendNote(c *net.UnixConn, n note, fds ...int) error {
	b, err := json.Marshal(n)
	if err != nil {
		return err
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err = c.WriteMsgUnix(b, oob, nil)
	return err
}

func recvNote(c *net.UnixConn) (n note, fds []int, err error) {
	b, oob := make([]byte, 64<<10), make([]byte, 1024)
	nb, no, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		return n, nil, err
	}
	if nb == 0 {
		return n, nil, net.ErrClosed
	}
	if ms, err := unix.ParseSocketControlMessage(oob[:no]); err == nil {
		for _, m := range ms {
			if r, err := unix.ParseUnixRights(&m); err == nil {
				fds = append(fds, r...)
			}
		}
	}
	return n, fds, json.Unmarshal(b[:nb], &n)
}

func must(err error) {
	if err != nil {
		os.Stderr.WriteString(filepath.Base(os.Args[0]) + ": " + err.Error() + "\r\n")
		os.Exit(125)
	}
}

// deputyMain asks for its command to be placed and then stands for it.
func deputyMain() {
	sigs := make(chan os.Signal, 64)
	signal.Notify(sigs, unix.SIGINT, unix.SIGQUIT, unix.SIGTSTP, unix.SIGHUP, unix.SIGWINCH, unix.SIGCONT, unix.SIGTERM)
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: os.Getenv("TTY_TEST_SOCK"), Net: "unixpacket"})
	must(err)
	dir, _ := os.Getwd()
	must(sendNote(c, note{What: "place", Args: os.Args[1:], Env: os.Environ(), Dir: dir, Pid: os.Getpid()}))
	go func() {
		for s := range sigs {
			_ = sendNote(c, note{What: "sig", Sig: int(s.(syscall.Signal))})
		}
	}()
	for {
		n, _, err := recvNote(c)
		if err != nil {
			os.Exit(124)
		}
		switch n.What {
		case "exit":
			os.Exit(n.Code)
		case "die":
			var dfl [4]uint64 // SIG_DFL; Reset leaves the runtime's own handler
			_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(n.Sig), uintptr(unsafe.Pointer(&dfl)), 0, 8, 0, 0)
			_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
			_ = unix.Kill(os.Getpid(), syscall.Signal(n.Sig))
			select {}
		case "stop":
			_ = unix.Kill(os.Getpid(), unix.SIGSTOP)
		case "error":
			os.Stderr.WriteString(n.Err + "\r\n")
			os.Exit(126)
		}
	}
}

// agentMain is the session leader at the guest. Descriptor 3 is its line to
// the test.
func agentMain() {
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTSTP)
	f := os.NewFile(3, "line")
	fc, err := net.FileConn(f)
	must(err)
	f.Close()
	c := fc.(*net.UnixConn)
	tty := -1
	gates := map[int]int{}
	reply := func(n note, err error) {
		n.What = "reply"
		if err != nil {
			n.Err = err.Error()
		}
		must(sendNote(c, n))
	}
	for {
		n, fds, err := recvNote(c)
		if err != nil {
			os.Exit(0)
		}
		switch n.What {
		case "ctty":
			err := sys.SetControllingTty(fds[0])
			unix.Close(fds[0])
			tty = 0
			reply(note{}, err)
		case "fg":
			if tty < 0 {
				reply(note{Err: "no tty"}, nil)
				continue
			}
			pg := n.Pgid
			if pg == 0 {
				pg = unix.Getpgrp()
			}
			reply(note{}, withoutTTOU(func() error {
				fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_CLOEXEC, 0)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				return sys.SetTtyForeground(fd, pg)
			}))
		case "start":
			var p [2]int
			must(unix.Pipe2(p[:], unix.O_CLOEXEC))
			files := make([]uintptr, 401)
			for i := range files {
				files[i] = ^uintptr(0)
			}
			for i, num := range n.Nums {
				files[num] = uintptr(fds[i])
			}
			files[gateFD] = uintptr(p[0])
			pid, err := syscall.ForkExec("/proc/self/exe", append([]string{"ttygate"}, n.Args...), &syscall.ProcAttr{
				Dir: n.Dir, Env: n.Env, Files: files,
				Sys: &syscall.SysProcAttr{Setpgid: true, Pgid: n.Pgid},
			})
			for _, fd := range fds {
				unix.Close(fd)
			}
			unix.Close(p[0])
			if err != nil {
				unix.Close(p[1])
			} else {
				gates[pid] = p[1]
			}
			reply(note{Pid: pid}, err)
		case "go":
			_, err := unix.Write(gates[n.Pid], []byte{1})
			unix.Close(gates[n.Pid])
			delete(gates, n.Pid)
			go watchChild(c, n.Pid)
			reply(note{}, err)
		}
	}
}

func watchChild(c *net.UnixConn, pid int) {
	for {
		var ws unix.WaitStatus
		_, err := unix.Wait4(pid, &ws, unix.WUNTRACED|unix.WCONTINUED, nil)
		if err == unix.EINTR {
			continue
		}
		must(err)
		n := note{What: "event", Pid: pid}
		switch {
		case ws.Stopped():
			n.Args, n.Sig = []string{"stop"}, int(ws.StopSignal())
		case ws.Signaled():
			n.Args, n.Sig = []string{"die"}, int(ws.Signal())
		case ws.Exited():
			n.Args, n.Code = []string{"exit"}, ws.ExitStatus()
		default:
			continue
		}
		must(sendNote(c, n))
		if n.Args[0] != "stop" {
			return
		}
	}
}

func withoutTTOU(fn func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var set, old unix.Sigset_t
	set.Val[0] = 1 << (unix.SIGTTOU - 1)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, &old); err != nil {
		return err
	}
	defer unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
	return fn()
}

const gateFD = 400

// gateMain waits for a byte and becomes the body.
func gateMain() {
	var b [1]byte
	for {
		n, err := unix.Read(gateFD, b[:])
		if err == unix.EINTR {
			continue
		}
		if n != 1 {
			os.Exit(123)
		}
		break
	}
	unix.Close(gateFD)
	path := os.Args[1]
	if !strings.Contains(path, "/") {
		for _, d := range strings.Split(os.Getenv("PATH"), ":") {
			if st, err := os.Stat(d + "/" + path); err == nil && st.Mode()&0o111 != 0 {
				path = d + "/" + path
				break
			}
		}
	}
	must(syscall.Exec(path, os.Args[1:], os.Environ()))
}
