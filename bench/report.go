package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is what one run measured.
type Report struct {
	Machine Machine
	Version string // of the unum that was measured
	Quick   bool   `json:",omitempty"`
	Started time.Time
	Took    time.Duration
	Rows    []Row
}

// Row is one figure.
type Row struct {
	Section string
	Name    string
	Value   float64 `json:",omitempty"`
	Unit    string  `json:",omitempty"` // us, ms, s, ns, MB/s, 1/s
	P10     float64 `json:",omitempty"` // in Unit; the best tenth
	P90     float64 `json:",omitempty"`
	Samples int     `json:",omitempty"`
	Ratio   float64 `json:",omitempty"` // to what Of names
	Of      string  `json:",omitempty"`
	Gate    *Gate   `json:",omitempty"`
	Err     string  `json:",omitempty"` // why there is no figure
}

// Gate is a limit that the row's ratio, or its value where it has no ratio,
// must keep.
type Gate struct {
	Limit float64
	Least bool // at least Limit, instead of at most
	Value bool // of Value, not of Ratio
	Aim   float64
	Met   bool
}

func atMost(limit float64) *Gate  { return &Gate{Limit: limit} }
func atLeast(limit float64) *Gate { return &Gate{Limit: limit, Least: true} }

// add appends a row and decides its gate.
func (r *Report) add(row Row) {
	if g := row.Gate; g != nil && row.Err == "" {
		v := row.Ratio
		if g.Value {
			v = row.Value
		}
		g.Met = v <= g.Limit
		if g.Least {
			g.Met = v >= g.Limit
		}
	}
	r.Rows = append(r.Rows, row)
}

// Missed counts the gates that were not met, and Failed what could not be
// measured.
func (r *Report) Missed() (n int) {
	for _, row := range r.Rows {
		if row.Gate != nil && !row.Gate.Met && row.Err == "" {
			n++
		}
	}
	return n
}

func (r *Report) Failed() (n int) {
	for _, row := range r.Rows {
		if row.Err != "" {
			n++
		}
	}
	return n
}

// Print writes the report as a table.
func (r *Report) Print(w io.Writer) error {
	fmt.Fprintf(w, "%s\nunum %s, %s, %.0f s\n", r.Machine, r.Version, r.Started.Format(time.DateTime), r.Took.Seconds())
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	section := ""
	for _, row := range r.Rows {
		if row.Section != section {
			section = row.Section
			fmt.Fprintf(t, "\n%s\n", section)
		}
		if row.Err != "" {
			first, _, _ := strings.Cut(row.Err, "\n")
			fmt.Fprintf(t, "  %s\tfailed: %s\n", row.Name, first)
			continue
		}
		spread, ratio, gate := "", "", ""
		if row.P90 != 0 {
			spread = fmt.Sprintf("%.4g–%.4g", row.P10, row.P90)
		}
		if row.Ratio != 0 {
			ratio = fmt.Sprintf("%.3g × %s", row.Ratio, row.Of)
		}
		if g := row.Gate; g != nil {
			gate = g.String()
		}
		fmt.Fprintf(t, "  %s\t%.4g %s\t%s\t%s\t%s\n", row.Name, row.Value, row.Unit, spread, ratio, gate)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%d gates missed, %d figures failed\n", r.Missed(), r.Failed())
	return err
}

func (g *Gate) String() string {
	s := "≤"
	if g.Least {
		s = "≥"
	}
	s = fmt.Sprintf("%s %g", s, g.Limit)
	if g.Aim != 0 {
		s += fmt.Sprintf(", aim %g", g.Aim)
	}
	if g.Met {
		return s + ": met"
	}
	return s + ": MISSED"
}

// Save writes the report as JSON.
func (r *Report) Save(path string) error {
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
