package main

import "unum/node"

func daemonMain(config string) error { return node.Main(config) }
