package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"unum"
)

// LogStore keeps what detached processes write: one file each, DIR/PID.log
// (DIR/new-ID while it is being started), which the process has open itself, so that nothing is lost while no daemon is
// there. A file is cut at its front when it has grown beyond Limit; its offsets
// stay.
type LogStore struct {
	dir string

	news   chan struct{} // capacity 1: there is a log more
	cancel context.CancelFunc
	done   chan struct{}
}

// LogLimit is how much of a process's output can be read, in bytes; up to twice
// as much lies in the file system. A process that
// writes faster than the store looks exceeds it for a moment.
const LogLimit = 1 << 20

// How often the store looks at the files, and how many it keeps of processes
// that have ended.
const (
	logPeriod = 100 * time.Millisecond // while anything is written
	logPause  = 2 * time.Second        // at most, while nothing is
	logKeep   = 256
)

// LogChunk is a piece of a log.
type LogChunk struct {
	Data   []byte
	Offset int64 // of Data; beyond what was asked if that is gone already
	Next   int64 // what to ask for next
	Ended  bool  // the process has ended
	Status string
}

// OpenLogs opens the store in dir, which outlives the daemon.
func OpenLogs(dir string) (*LogStore, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, &unum.Error{Op: "logs", Path: dir, Err: err}
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &LogStore{dir: dir, news: make(chan struct{}, 1), cancel: cancel, done: make(chan struct{})}
	go s.trimLoop(ctx)
	return s, nil
}

// Close stops cutting; the files stay.
func (s *LogStore) Close() error {
	s.cancel()
	<-s.done
	return nil
}

func (s *LogStore) path(pid unum.Pid) string { return filepath.Join(s.dir, pid.String()+".log") }

// pendingLog is a log whose process has not started yet.
type pendingLog struct {
	s    *LogStore
	f    *os.File
	name string
	kept bool
}

const newLog = "new-"

func (s *LogStore) create(uid uint32, id string) (*pendingLog, error) {
	name := filepath.Join(s.dir, newLog+filepath.Base(id))
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Chown(int(uid), -1); err != nil {
		f.Close()
		os.Remove(name)
		return nil, err
	}
	return &pendingLog{s: s, f: f, name: name}, nil
}

func (p *pendingLog) keep(pid unum.Pid) error {
	os.Remove(p.s.path(pid) + ".end")
	p.kept = true
	err := os.Rename(p.name, p.s.path(pid))
	select {
	case p.s.news <- struct{}{}:
	default:
	}
	return err
}

func (p *pendingLog) abandon() {
	p.f.Close()
	if !p.kept {
		os.Remove(p.name)
	}
}

// pending lists the logs of processes that the daemon before this one was
// starting, by the IDs of their requests.
func (s *LogStore) pending() map[string]*pendingLog {
	out := map[string]*pendingLog{}
	files, _ := filepath.Glob(filepath.Join(s.dir, newLog+"*"))
	for _, f := range files {
		out[strings.TrimPrefix(filepath.Base(f), newLog)] = &pendingLog{s: s, name: f}
	}
	return out
}

// pids lists the processes that have a log.
func (s *LogStore) pids() (out []unum.Pid) {
	logs, _ := filepath.Glob(filepath.Join(s.dir, "*.log"))
	for _, f := range logs {
		if pid, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(f), ".log")); err == nil {
			out = append(out, unum.Pid(pid))
		}
	}
	return out
}

// noted says whether it is noted how the process ended.
func (s *LogStore) noted(pid unum.Pid) bool {
	_, err := os.Stat(s.path(pid) + ".end")
	return err == nil
}

// ended notes how the process ended, for Read.
func (s *LogStore) ended(pid unum.Pid, e Exit, err error) {
	status := "exit " + strconv.Itoa(e.Code)
	switch {
	case err != nil:
		status = err.Error()
	case e.Signal != 0:
		status = unix.SignalName(unix.Signal(e.Signal))
	}
	// Whole or not at all: who finds it reads it.
	tmp := filepath.Join(s.dir, "end-"+pid.String())
	if os.WriteFile(tmp, []byte(status), 0o600) == nil {
		os.Rename(tmp, s.path(pid)+".end")
	}
	s.forget()
}

// forget removes the oldest logs of ended processes beyond logKeep.
func (s *LogStore) forget() {
	ends, _ := filepath.Glob(filepath.Join(s.dir, "*.log.end"))
	for len(ends) > logKeep {
		oldest, at := 0, time.Now()
		for i, e := range ends {
			if fi, err := os.Stat(e); err == nil && fi.ModTime().Before(at) {
				oldest, at = i, fi.ModTime()
			}
		}
		os.Remove(strings.TrimSuffix(ends[oldest], ".end"))
		os.Remove(ends[oldest])
		ends = append(ends[:oldest], ends[oldest+1:]...)
	}
}

// Read returns a piece of a process's output from offset. unum.ErrNoProcess
// if there is no log of it here, unum.ErrDenied if it is not the caller's.
func (s *LogStore) Read(c Caller, pid unum.Pid, offset int64) (*LogChunk, error) {
	// Looked up first: what is written before the end is then in the piece.
	status, endErr := os.ReadFile(s.path(pid) + ".end")
	f, err := os.Open(s.path(pid))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%d has no log on this node: %w", pid, unum.ErrNoProcess)
	}
	if err != nil {
		return nil, &unum.Error{Op: "logs", Pid: pid, Err: err}
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, &unum.Error{Op: "logs", Pid: pid, Err: err}
	}
	if !c.May(fi.Sys().(*syscall.Stat_t).Uid) {
		return nil, &unum.Error{Op: "logs", Pid: pid, Err: unum.ErrDenied}
	}
	offset = max(offset, fi.Size()-LogLimit, 0)
	b := make([]byte, min(fi.Size()-offset, 1<<20))
	n, err := f.ReadAt(b, offset)
	if err != nil && err != io.EOF {
		return nil, &unum.Error{Op: "logs", Pid: pid, Err: err}
	}
	return &LogChunk{
		Data: b[:max(n, 0)], Offset: offset, Next: offset + int64(n),
		Ended:  endErr == nil && offset+int64(n) >= fi.Size(),
		Status: string(status),
	}, nil
}

func (s *LogStore) trimLoop(ctx context.Context) {
	defer close(s.done)
	t := time.NewTimer(0)
	defer t.Stop()
	var sum int64
	for pause := logPeriod; ; {
		select {
		case <-ctx.Done():
			return
		case <-s.news:
			pause = logPeriod
			t.Reset(pause)
			continue
		case <-t.C:
		}
		logs, _ := filepath.Glob(filepath.Join(s.dir, "*.log"))
		was := sum
		sum = 0
		for _, name := range logs {
			sum += trim(name)
		}
		if pause = min(2*pause, logPause); sum != was {
			pause = logPeriod
		}
		if len(logs) > 0 { // else until there is one
			t.Reset(pause)
		}
	}
}

// trim gives the front of an over-long log back to the file system. The size
// stays, so the appending process and its readers keep their offsets. It is
// returned.
func trim(name string) int64 {
	var st unix.Stat_t
	if unix.Stat(name, &st) != nil || st.Blocks*512 <= 2*LogLimit {
		return st.Size
	}
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return st.Size
	}
	defer unix.Close(fd)
	unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, st.Size-LogLimit)
	return st.Size
}
