// Package seccomp builds the world's one filter and answers what it traps.
//
// The filter is installed by the world's pid 1, inherited by every process and
// fixed for the world's life, so it traps the superset of calls that unum will
// ever need, chosen by number and argument. Everything else is allowed without
// running the filter at all: since 5.11 the kernel keeps a bitmap of the calls
// for which a filter answers ALLOW whatever the arguments are
// (kernel/seccomp.c, seccomp_cache_prepare).
//
// Kernel: SECCOMP_RET_USER_NOTIF 5.0, ADDFD 5.9, WAIT_KILLABLE_RECV 5.19
// (man 2 seccomp, man 2 seccomp_unotify).
package seccomp
