package rexec

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"unum"
	"unum/deputy"
)

// RootAgent makes the root agent of a world that has just been started: pid 1
// forks it, then becomes the keeper of the PID range. serve must begin to
// answer the world's notifications; it is called when both are expected.
func RootAgent(ctx context.Context, reg *deputy.Registry, pid1 int, r unum.PIDRange, lastPid int, serve func()) (*deputy.Stub, error) {
	agent := &deputy.Program{}
	agent.Do(unix.SYS_CLOSE_RANGE, 0, uint64(^uint32(0)), 0)
	agent.Do(unix.SYS_PRCTL, unix.PR_SET_NAME, agent.String("unum-root"))
	born, cancel, err := reg.ExpectChild(pid1, deputy.First{Prog: agent})
	if err != nil {
		return nil, err
	}
	defer cancel()
	failed := make(chan error, 1)
	_, cancelInit, err := reg.ExpectConverted(pid1, deputy.First{
		Prog: forkProgram(0),
		Done: func(res *deputy.Result, err error) {
			if err == nil {
				_, err = res.Err()
			}
			failed <- err
		},
	})
	if err != nil {
		return nil, err
	}
	defer cancelInit()
	serve()
	select {
	case err = <-failed:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("root agent: %w", err)
	}
	select {
	case s := <-born:
		s.OnSignal(nil)
		init := reg.Find(pid1)
		init.OnSignal(nil)
		return s, init.Init(r, lastPid)
	case <-ctx.Done():
		return nil, fmt.Errorf("root agent: %w", ctx.Err())
	}
}
