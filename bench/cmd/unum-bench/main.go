// Command unum-bench runs the benchmarks of package bench. It is started by
// `make bench`.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"

	"unum/bench"
	"unum/bench/probe"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "probe" {
		os.Exit(probe.Main(os.Args[2:]))
	}
	unum := flag.String("unum", "./unum", "the built `binary`")
	cache := flag.String("cache", "/var/tmp/unum-bench-cache", "`directory` for what is downloaded")
	quick := flag.Bool("quick", false, "about 3 minutes: fewer rounds, a part of the build")
	only := flag.String("only", "", "comma-separated `sections`: exec, carry, local, build")
	native := flag.Bool("native", false, "leave out unum: shows what the native figures are and how they vary")
	json := flag.String("json", "", "also write the report to this `file`")
	strict := flag.Bool("strict", false, "exit with 1 if a gate is missed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	opt := bench.Options{Unum: *unum, Cache: *cache, Quick: *quick, Native: *native, Log: os.Stderr}
	if *only != "" {
		opt.Only = strings.Split(*only, ",")
	}
	rep, err := bench.Run(ctx, opt)
	if rep != nil {
		rep.Print(os.Stdout)
		if *json != "" {
			if jerr := rep.Save(*json); err == nil {
				err = jerr
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "unum-bench:", err)
	}
	if err != nil || rep.Failed() > 0 || *strict && rep.Missed() > 0 {
		os.Exit(1)
	}
}
