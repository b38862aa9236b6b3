package detect

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"unum"
	"unum/unumtest/transcript"
)

// A transcript is a list of inputs; the events of each follow it, indented.
//
//	TIME members NODE[:EPOCH][!] …   ! is a lease that ran out
//	TIME heard NODE[:EPOCH] [NODE[:EPOCH] …]   the rest is what it suspects
//	TIME connected NODE INCARNATION
//	TIME answered NODE
//	TIME tick
//	TIME run TIME [NODE …]   ticks to there, each with heartbeats of these nodes
//	TIME suspects
//	TIME isolated
func TestTranscripts(t *testing.T) {
	transcript.Run(t, play)
}

func play(t *testing.T, in string) string {
	var out strings.Builder
	d := New("n1", Config{})
	tell := func(at time.Duration, events []Event) {
		for _, e := range events {
			fmt.Fprintf(&out, "    %s %s %s:%d", at, e.Kind, e.ID, e.Epoch)
			if e.Why != "" {
				fmt.Fprintf(&out, ": %s", e.Why)
			}
			out.WriteByte('\n')
		}
	}
	for line := range strings.Lines(in) {
		if strings.HasPrefix(line, "    ") {
			continue
		}
		out.WriteString(line)
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		now := parseTime(t, f[0])
		switch f[1] {
		case "members":
			var list []Member
			for _, w := range f[2:] {
				s := suspicion(t, strings.TrimSuffix(w, "!"))
				list = append(list, Member{ID: s.ID, Epoch: s.Epoch, Lease: !strings.HasSuffix(w, "!")})
			}
			d.Members(now, list)
		case "heard":
			from := suspicion(t, f[2])
			tell(now, d.Heard(now, from.ID, from.Epoch, suspicions(t, f[3:])))
		case "connected":
			inc, err := strconv.Atoi(f[3])
			if err != nil {
				t.Fatal(line, err)
			}
			tell(now, d.Connected(now, unum.NodeID(f[2]), unum.Incarnation(inc)))
		case "answered":
			d.Answered(now, unum.NodeID(f[2]))
		case "tick":
			tell(now, d.Tick(now))
		case "run":
			for end := parseTime(t, f[2]); now <= end; now += 50 * time.Millisecond {
				for _, w := range f[3:] {
					s := suspicion(t, w)
					tell(now, d.Heard(now, s.ID, s.Epoch, nil))
				}
				tell(now, d.Tick(now))
			}
		case "suspects":
			fmt.Fprintf(&out, "    %v\n", d.Suspects())
		case "isolated":
			fmt.Fprintf(&out, "    %v\n", d.Isolated())
		default:
			t.Fatalf("%q?", line)
		}
	}
	return out.String()
}

func parseTime(t *testing.T, s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func suspicions(t *testing.T, words []string) (out []Suspicion) {
	for _, w := range words {
		out = append(out, suspicion(t, w))
	}
	return out
}

func suspicion(t *testing.T, w string) Suspicion {
	id, e, ok := strings.Cut(w, ":")
	if !ok {
		return Suspicion{unum.NodeID(id), 1}
	}
	n, err := strconv.Atoi(e)
	if err != nil {
		t.Fatal(err)
	}
	return Suspicion{unum.NodeID(id), unum.Epoch(n)}
}
