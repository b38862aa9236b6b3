// Command static-hello is a static program with a runtime that uses signals
// and threads of its own: with arguments it prints them, "exec N" starts
// /bin/true N times from goroutines.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

func main() {
	if len(os.Args) < 3 || os.Args[1] != "exec" {
		fmt.Println("hello", strings.Join(os.Args[1:], " "))
		return
	}
	n, err := strconv.Atoi(os.Args[2])
	if err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
	var good atomic.Int32
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if err := exec.Command("/bin/true").Run(); err != nil {
				fmt.Println(err)
				return
			}
			good.Add(1)
		})
	}
	wg.Wait()
	fmt.Println(good.Load(), "good")
}
