package ctl

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"unum"
)

// Where the sockets are.
const (
	InsideSocket = "/run/unum/control.sock"     // inside a world
	RealSocket   = "/run/unum/pub/control.sock" // on a real machine, outside
	PlayDir      = "/run/unum/play"
)

// Inside says whether this process runs in a world.
func Inside() bool {
	fi, err := os.Stat(InsideSocket)
	return err == nil && fi.Mode()&os.ModeSocket != 0
}

// PlaySocket is the control socket of a node of a play.
func PlaySocket(cluster, node string) string {
	return filepath.Join(PlayDir, cluster, node, "pub", "control.sock")
}

// Find returns the control socket to use. cluster names a play, or is a path
// of a socket, or is empty for the only cluster that runs here; via names the
// node of a play to ask, n1 if empty.
func Find(cluster, via string) (string, error) {
	if strings.Contains(cluster, "/") {
		return cluster, nil
	}
	if via == "" {
		via = "n1"
	}
	if strings.ContainsAny(via, "/") {
		return "", fmt.Errorf("%s: %w", via, unum.ErrNoNode)
	}
	if cluster != "" {
		sock := PlaySocket(cluster, via)
		if _, err := os.Stat(sock); err != nil {
			if names := Plays(); len(names) > 0 {
				return "", fmt.Errorf("cluster %s, node %s: not running here (running: %s)", cluster, via, strings.Join(names, ", "))
			}
			return "", fmt.Errorf("cluster %s, node %s: not running here", cluster, via)
		}
		return sock, nil
	}
	if Inside() {
		return InsideSocket, nil
	}
	if alive(RealSocket) {
		return RealSocket, nil
	}
	switch names := Plays(); len(names) {
	case 0:
		return "", errors.New("no cluster runs on this machine: start one with `unum play`")
	case 1:
		return PlaySocket(names[0], via), nil
	default:
		return "", fmt.Errorf("several clusters run on this machine: choose with --cluster or UNUM_CLUSTER: %s", strings.Join(names, ", "))
	}
}

// Plays lists the plays whose first node answers.
func Plays() []string {
	socks, _ := filepath.Glob(PlaySocket("*", "n1"))
	var names []string
	for _, s := range socks {
		if alive(s) {
			names = append(names, strings.Split(strings.TrimPrefix(s, PlayDir+"/"), "/")[0])
		}
	}
	sort.Strings(names)
	return names
}

// alive says whether somebody listens, or lets us know that we may not ask.
func alive(sock string) bool {
	c, err := net.Dial("unix", sock)
	if err != nil {
		return false
	}
	c.Close()
	return true
}
