package rexec

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"unum"
	"unum/deputy"
	"unum/sys"
)

// recover finds the processes and their agent again.
func (r *Runs) recover() (err error) {
	if r.records, err = openRecords[runRecord](filepath.Join(r.cfg.StateDir, "runs")); err != nil {
		return err
	}
	all, err := r.records.load()
	if err != nil {
		return err
	}
	birth := all[birthKey]
	delete(all, birthKey)
	known := map[int]bool{}
	for key, rec := range all {
		var pid unum.Pid
		if _, err := fmt.Sscan(key, &pid); err != nil {
			return fmt.Errorf("run record %q: %w", key, err)
		}
		if pid == 0 {
			continue
		}
		x := &run{runRecord: *rec, done: make(chan struct{})}
		r.runs[pid] = x
		if rec.End.Kind != 0 {
			close(x.done)
		}
		known[rec.Host] = true
		if birth != nil && birth.ID == rec.ID {
			birth = nil // it had come so far
		}
	}
	rec := all["0"]
	if rec == nil {
		r.records.remove(birthKey)
		return nil
	}
	a := deputy.Ended(0) // killed meanwhile, and what it could tell is lost
	if pid, err := sys.WorldPid(rec.Host); err == nil && isStub(rec.Host) {
		if birth != nil {
			if birth, err = r.resume(birth, rec.Host, known); err != nil {
				return err
			}
		}
		if a, err = r.cfg.Registry.Adopt(rec.Host, pid); err != nil {
			return err
		}
	}
	for _, x := range r.runs {
		x.parent = a
	}
	r.outlive(a)
	if birth == nil || a.Dead() {
		r.records.remove(birthKey)
	}
	if a.Dead() {
		return nil
	}
	settled := make(chan struct{})
	r.birth, r.settled = birth, settled
	r.agent = &session{parent: parent{agent: a, settled: make(chan struct{})}}
	first := r.agent.settled
	r.agent.watch(r.cfg.Cookie, r.log, r.ended).reap()
	r.wg.Go(func() {
		select {
		case <-first:
		case <-a.Gone():
		}
		r.forsake()
		close(settled)
	})
	return nil
}

// outlive waits for the end of an agent, and then for those of its processes
// (see orphan.go).
func (r *Runs) outlive(agent *deputy.Stub) {
	r.wg.Go(func() {
		<-agent.Gone()
		r.mu.Lock()
		defer r.mu.Unlock()
		for pid, x := range r.runs {
			if x.parent == agent && x.End.Kind == 0 {
				r.orphaned(pid, x.Host)
			}
		}
	})
}

// orphaned waits for the end of a process whose agent is gone.
func (r *Runs) orphaned(pid unum.Pid, host int) {
	r.wg.Go(func() {
		s := deputy.Ended(pid)
		if at, err := sys.WorldPid(host); err == nil && at == pid {
			if w, err := r.cfg.Registry.Watch(host, pid); err == nil {
				s = w
			}
		}
		r.ended([]childEvent{{pid: pid, info: *orphanEnd(s)}})
	})
}

// resume looks for the child of a birth that was under way: it is the one of
// the agent's children that nobody knows. One that came to its exec is the
// command. One that did not is ended, and the client asks again. If there is
// none, the birth is returned.
func (r *Runs) resume(birth *runRecord, agent int, known map[int]bool) (*runRecord, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", agent, agent))
	if err != nil {
		return nil, fmt.Errorf("children of the agent: %w", err)
	}
	for _, f := range strings.Fields(string(b)) {
		host, err := strconv.Atoi(f)
		if err != nil || known[host] {
			continue
		}
		pid, err := sys.WorldPid(host)
		if err != nil {
			return nil, err
		}
		if isNewborn(host) {
			r.records.remove(birthKey) // first: its death is not the command's
			s, err := r.cfg.Registry.Watch(host, pid)
			if err != nil {
				return nil, err
			}
			s.Kill()
			<-s.Gone()
			return nil, nil
		}
		x := &run{runRecord: *birth, done: make(chan struct{})}
		x.Host = host
		r.runs[pid] = x
		return nil, r.records.save(pid.String(), &x.runRecord)
	}
	return birth, nil
}

// ended is told by the agent.
func (r *Runs) ended(evs []childEvent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range evs {
		r.endedLocked(evs[i].pid, &evs[i].info)
	}
}

func (r *Runs) endedLocked(pid unum.Pid, si *sys.Siginfo) {
	var end eventReq
	switch si.Code() {
	case cldExited:
		end = eventReq{Kind: exited, Status: int(si.Status())}
	case cldKilled, cldDumped:
		end = eventReq{Kind: killed, Status: int(si.Status()), Core: si.Code() == cldDumped}
	default:
		return
	}
	if reaped := r.undone[pid]; reaped != nil {
		delete(r.undone, pid)
		close(reaped)
		return
	}
	x := r.runs[pid]
	if r.birth != nil && (x == nil || x.End.Kind != 0) {
		// It ended before it was written down.
		x = &run{runRecord: *r.birth, done: make(chan struct{})}
		r.runs[pid] = x
	}
	if x == nil || x.End.Kind != 0 {
		return // it never came to its exec, under a daemon before this one
	}
	x.End = end
	if err := r.records.save(pid.String(), &x.runRecord); err != nil {
		r.log.Error("write down the end of a process", "pid", pid, "err", err)
	}
	close(x.done)
}
