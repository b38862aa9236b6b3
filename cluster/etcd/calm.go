package etcd

import (
	"reflect"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver"
)

// calmTick is the tick of a voter that leads and is the only one: its ticks
// drive heartbeats to nobody and elections that are over. Under a cap of 0.3
// processors fifty of them a second are felt.
const calmTick = time.Second

// calm sets the period of a running server's ticks. etcd has no call for it, so
// this reaches for the field of raftNode (etcdserver/raft.go of 3.7); if there
// is none any more, nothing changes, and it returns false.
func calm(s *etcdserver.EtcdServer, tick time.Duration) bool {
	raft := reflect.ValueOf(s).Elem().FieldByName("r")
	if raft.Kind() != reflect.Struct {
		return false
	}
	f := raft.FieldByName("ticker")
	if !f.IsValid() || f.Type() != reflect.TypeFor[*time.Ticker]() || f.IsNil() {
		return false
	}
	(*time.Ticker)(f.UnsafePointer()).Reset(tick)
	return true
}
