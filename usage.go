package unum

// Usage is what a process and its reaped children used (man 2 getrusage).
type Usage struct {
	Utime, Stime   int64 // microseconds
	MaxRSS         int64 // KiB
	MinFlt, MajFlt int64
	InBlock        int64
	OutBlock       int64
	NVCSw, NIvCSw  int64
}

// Add sums two; the largest resident set wins.
func (u *Usage) Add(v Usage) {
	u.Utime += v.Utime
	u.Stime += v.Stime
	u.MaxRSS = max(u.MaxRSS, v.MaxRSS)
	u.MinFlt += v.MinFlt
	u.MajFlt += v.MajFlt
	u.InBlock += v.InBlock
	u.OutBlock += v.OutBlock
	u.NVCSw += v.NVCSw
	u.NIvCSw += v.NIvCSw
}
