package world

// Freeze halts every process of the world, or lets them go on. A world that is
// halted can be killed.
func (w *World) Freeze(halt bool) error { return w.cgroup.Freeze(halt) }
