package behave

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
)

var rewriteMu sync.Mutex

// rewrite puts got in the place of the case's "--- stdout" section, in the
// source file. A person looks at the diff afterwards.
func rewrite(c *Case, got string) error {
	rewriteMu.Lock()
	defer rewriteMu.Unlock()
	file, at, _ := strings.Cut(c.Where, ":")
	line, err := strconv.Atoi(at)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	lines := strings.Split(string(b), "\n")
	// Earlier rewrites may have moved the case: find it by its header.
	name, _, _ := strings.Cut(c.Name, ",")
	for i, l := range lines {
		if strings.HasPrefix(l+" ", "=== "+name+" ") {
			line = i + 1
			break
		}
	}
	from := 0
	for i := line; i < len(lines) && !strings.HasPrefix(lines[i], "=== "); i++ {
		if lines[i] == "--- stdout" {
			from = i + 1
			break
		}
	}
	if from == 0 {
		return fmt.Errorf("%s: no stdout section", c.Where)
	}
	to := from
	for to < len(lines) && !strings.HasPrefix(lines[to], "--- ") && !strings.HasPrefix(lines[to], "=== ") {
		to++
	}
	var out []string
	out = append(out, lines[:from]...)
	out = append(out, strings.Split(strings.TrimSuffix(got, "\n"), "\n")...)
	if to < len(lines) && strings.HasPrefix(lines[to], "=== ") {
		out = append(out, "")
	}
	out = append(out, lines[to:]...)
	return os.WriteFile(file, []byte(strings.Join(out, "\n")), 0o644)
}
