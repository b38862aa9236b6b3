package deputy

import "unum/sys"

// MarkGroup makes a queued signal one that goes to a process group, and that
// the deputy's body is given by another way too: the number tells that it is
// the same one. Only deputies are given such.
func MarkGroup(info *sys.Siginfo, id uint64) *sys.Siginfo {
	m := sys.MakeSiginfo(info.Signo(), groupCode, info.Pid(), info.Uid())
	m.SetValue(id)
	return m
}

// groupCode is the si_code of a marked signal: negative, as that of any signal
// that a process sends, and of no meaning to Linux.
const groupCode = -59

// GroupOf returns the number of a marked signal, else 0.
func GroupOf(info *sys.Siginfo) uint64 {
	if info.Code() != groupCode {
		return 0
	}
	return info.Value()
}
