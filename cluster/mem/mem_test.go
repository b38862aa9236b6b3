package mem

import (
	"testing"
	"time"

	"unum"
	"unum/cluster"
	"unum/cluster/clustertest"
)

func TestSuite(t *testing.T) {
	clustertest.Run(t, func(t *testing.T) clustertest.Env {
		w := NewWorld(300 * time.Millisecond)
		return clustertest.Env{TTL: 300 * time.Millisecond, Open: func(unum.NodeID) cluster.Store { return w.Store() }}
	})
}
