package sched

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"unum"
	"unum/unumtest/transcript"
)

// TestTranscripts plays testdata/*.txt: lines that tell the scheduler
// something, each followed by what it answered, indented after "=".
func TestTranscripts(t *testing.T) {
	transcript.Run(t, play)
}

// stage is a scheduler with the view that a transcript builds for it.
type stage struct {
	s    *Scheduler
	view View
	now  int64
	pid  unum.Pid
}

func play(t *testing.T, text string) string {
	st := &stage{s: New(Config{}), view: View{Self: "n1"}, pid: 65600}
	var out strings.Builder
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "    = ") {
			continue
		}
		fmt.Fprintln(&out, line)
		if strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "" {
			continue
		}
		answers, err := st.do(line)
		if err != nil {
			t.Fatalf("line %d: %v", n, err)
		}
		for _, a := range answers {
			fmt.Fprintln(&out, "    = "+a)
		}
	}
	return out.String()
}

// do understands one line: verb, key=value options before "--" and, after it, a
// command line.
func (st *stage) do(line string) (answers []string, err error) {
	head, cmd, _ := strings.Cut(line, " -- ")
	words := strings.Fields(head)
	opt := map[string]string{}
	var args []string
	for _, w := range words[1:] {
		if k, v, ok := strings.Cut(w, "="); ok {
			opt[k] = v
		} else {
			args = append(args, w)
		}
	}
	argv := strings.Fields(cmd)
	if i := strings.Index(cmd, "'"); i >= 0 { // one quoted argument, at the end
		argv = append(strings.Fields(cmd[:i]), strings.Trim(cmd[i:], "'"))
	}
	switch words[0] {
	case "node": // node n1 cpus=2 running=0.5 free=4096 total=8192 state=up
		st.node(unum.NodeID(args[0]), opt)
	case "at": // at 1.5s: the clock
		d, err := time.ParseDuration(args[0])
		if err != nil {
			return nil, err
		}
		st.now = int64(d)
	case "place": // place [hint=] [caller=] [home=] [guest=1] [tty=1] [pid=] [times=] -- argv
		if len(argv) == 0 {
			return nil, errors.New("no command")
		}
		times := 1
		if v := opt["times"]; v != "" {
			times, _ = strconv.Atoi(v)
		}
		var nodes []string
		for range times {
			d, pid := st.place(opt, argv)
			if times > 1 {
				nodes = append(nodes, string(d.Node))
				continue
			}
			a := fmt.Sprintf("%d %s: %s", pid, d.Node, d.Why)
			if d.Observe {
				a += " (observed)"
			}
			answers = append(answers, a)
			if d.Err != nil {
				answers = append(answers, "error: "+d.Err.Error())
			}
		}
		if times > 1 {
			answers = append(answers, strings.Join(nodes, " "))
		}
	case "finish": // finish 65601 cpu=300ms
		pid, _ := strconv.Atoi(args[0])
		cpu, _ := time.ParseDuration(opt["cpu"])
		rss, _ := strconv.Atoi(opt["rss"])
		st.s.Finished(st.now, unum.Pid(pid), Outcome{CPU: cpu, MaxRSS: uint64(rss) << 20})
	case "fail":
		pid, _ := strconv.Atoi(args[0])
		st.s.Failed(st.now, unum.Pid(pid))
	case "started":
		pid, _ := strconv.Atoi(args[0])
		st.s.Started(st.now, unum.Pid(pid), unum.NodeID(args[1]))
	case "lost":
		st.s.Lost(unum.NodeID(args[0]))
	case "learn": // learn cpu=300ms rss=100 times=3 -- argv
		cpu, _ := time.ParseDuration(opt["cpu"])
		rss, _ := strconv.Atoi(opt["rss"])
		times, _ := strconv.Atoi(opt["times"])
		for range max(times, 1) {
			st.s.Learn(Command(argv[0], argv), Outcome{CPU: cpu, MaxRSS: uint64(rss) << 20})
		}
	case "forbid": // forbid reason=... -- argv
		st.s.Forbid(Command(argv[0], argv), strings.ReplaceAll(opt["reason"], "_", " "))
	case "load": // load: what it believes of every node
		for i := range st.view.Nodes {
			n := &st.view.Nodes[i]
			answers = append(answers, fmt.Sprintf("%s %.2f", n.ID, st.s.see(st.now, n)))
		}
	case "command": // command -- argv: its name in the tables
		answers = append(answers, Command(argv[0], argv))
	default:
		return nil, fmt.Errorf("unknown verb %q", words[0])
	}
	return answers, nil
}

func (st *stage) node(id unum.NodeID, opt map[string]string) {
	var n *unum.NodeInfo
	for i := range st.view.Nodes {
		if st.view.Nodes[i].ID == id {
			n = &st.view.Nodes[i]
		}
	}
	if n == nil {
		st.view.Nodes = append(st.view.Nodes, unum.NodeInfo{ID: id, State: unum.Up, Load: unum.Load{CPUs: 2, MemTotal: 8 << 30, MemFree: 4 << 30}})
		n = &st.view.Nodes[len(st.view.Nodes)-1]
	}
	n.Load.At++
	for k, v := range opt {
		f, _ := strconv.ParseFloat(v, 64)
		switch k {
		case "cpus":
			n.Load.CPUs = f
		case "running":
			n.Load.Running = f
		case "free":
			n.Load.MemFree = uint64(f) << 20
		case "state":
			n.State = unum.NodeState(v)
		}
	}
}

func (st *stage) place(opt map[string]string, argv []string) (Decision, unum.Pid) {
	r := Request{Path: argv[0], Argv: argv, Hint: opt["hint"], Caller: "n1", Home: "n1", Guest: opt["guest"] != "", Interactive: opt["tty"] != ""}
	if v := opt["caller"]; v != "" {
		r.Caller = unum.NodeID(v)
	}
	if v := opt["home"]; v != "" {
		r.Home = unum.NodeID(v)
	}
	if v := opt["pid"]; v != "" {
		pid, _ := strconv.Atoi(v)
		r.Pid = unum.Pid(pid)
	} else {
		st.pid++
		r.Pid = st.pid
	}
	parent, _ := strconv.Atoi(opt["parent"])
	r.Parent = unum.Pid(parent)
	return st.s.Place(st.now, st.view, r), r.Pid
}
