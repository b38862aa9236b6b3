package bench

import (
	"slices"
	"time"
)

// quantile returns the q-th quantile of the samples, 0 if there are none.
func quantile(ns []int64, q float64) time.Duration {
	if len(ns) == 0 {
		return 0
	}
	s := slices.Clone(ns)
	slices.Sort(s)
	return time.Duration(s[int(q*float64(len(s)-1)+0.5)])
}

func median(ns []int64) time.Duration { return quantile(ns, 0.5) }

// medianOf is the median of figures that are no times.
func medianOf(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Clone(v)
	slices.Sort(s)
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// ratios divides pairwise: rounds that ran one after the other saw the same
// machine, so the median of their ratios is steadier than the ratio of the
// medians.
func ratios(of, by []float64) []float64 {
	var r []float64
	for i := range min(len(of), len(by)) {
		if by[i] != 0 {
			r = append(r, of[i]/by[i])
		}
	}
	return r
}
