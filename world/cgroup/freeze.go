package cgroup

import (
	"fmt"
	"os"
	"path/filepath"

	"unum"
)

// Freeze halts the members of the group, or lets them go on. They can be killed
// meanwhile, which the v1 freezer does not allow: where the registry is a v1
// hierarchy the error wraps unum.ErrNoFeature. (cgroup.freeze, Linux 5.2; v2
// needs no controller for it.)
func (g *Group) Freeze(halt bool) error {
	if g.l.registry != g.l.v2 {
		return fmt.Errorf("cgroup.freeze needs cgroup v2: %w", unum.ErrNoFeature)
	}
	v := "0"
	if halt {
		v = "1"
	}
	return os.WriteFile(filepath.Join(g.Dir(), "cgroup.freeze"), []byte(v), 0)
}
