// Package bench measures what the one system costs: every figure natively and
// in the world, by the same program, in interleaved rounds, and the median
// counts. A figure that has a limit is printed as a ratio with the limit met
// or missed.
//
// It drives the built unum binary as a user would (`unum play -- …`) and talks
// to a small program of its own inside (package probe). Besides, it needs
// Debian's openssh-server, redis and the source of xz-utils, which Install and
// the sections fetch by apt-get; everything that it starts and writes lies in
// one temporary directory and is gone afterwards.
package bench
