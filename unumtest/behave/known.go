package behave

import (
	"strings"
)

// known reads the list of cases known to fail: "case mode" -> reason.
func known() (map[string]string, error) {
	b, err := testdata.ReadFile("testdata/known-failing.txt")
	if err != nil {
		return nil, err
	}
	m := map[string]string{}
	for _, l := range strings.Split(string(b), "\n") {
		f := strings.Fields(l)
		if len(f) >= 3 && !strings.HasPrefix(l, "#") {
			m[f[0]+" "+f[1]] = strings.Join(f[2:], " ")
		}
	}
	return m, nil
}
