// Package suites runs what others wrote to test shells, make and the tools that
// scripts are made of: their own suites, unmodified, natively as the control and then in a play, every exec
// on another node than its caller's. A test that passes natively passes in the
// play. To add a suite is to add an entry to the table.
//
//	UNUM_LONG=1 go test -v ./unumtest/suites
//	UNUM_LONG=1 UNUM_SUITES='^make$' go test -v ./unumtest/suites
//
// The sources are Debian's, fetched by apt-get source, and built natively; the
// tests of both runs lie at the same path.
package suites

import "strings"

// suite is one package's tests.
type suite struct {
	name  string
	pkg   string   // Debian's source package
	needs []string // programs, beside a C compiler and make
	// build is run once, natively, in the unpacked source.
	build string
	// tests is run in a copy of what was built. It writes a line a test, its
	// name, a space, how it ended; other lines would be tests too. $out is a
	// scratch directory. $only are the tests to run, if not all; a suite that
	// cannot choose runs all.
	tests string
	// known are tests that may end otherwise in a play, and why; "Known
	// differences" in ARCHITECTURE.md has the reasons at length.
	known map[string]string
}

const scriptFromPipe = "a pipe whose read end others hold looks like a regular file, and mksh seeks in it"

const interrupted = "zsh, whose SIGCHLD restarts nothing, may have it in the midst of tcsetpgrp, which is trapped"

const otherDevice = "a file whose description others hold is one of another device than its name"

// automake runs the tests of a folder, and tells them by the files in which
// automake's driver leaves their results.
const automake = `make -k -j2 -C tests check >/dev/null 2>&1
for f in $(find tests -name '*.trs'); do echo $f $(sed -n 's/:global-test-result: //p' $f); done`

var all = []suite{
	{
		// The program under test is the machine's own make, of the same source.
		name: "make", pkg: "make-dfsg", needs: []string{"perl"},
		build: `cd tests && sed "s/'@AR@'/'ar'/; s/'@CC@'/'gcc'/; s/'@CPP@'/'gcc -E'/; s/'@USE_SYSTEM_GLOB@'/'yes'/; s/@[A-Z_]*@//" config-flags.pm.in > config-flags.pm
# The driver empties the environment.
sed -i "s/'LOGNAME'/'UNUM_NODE', &/" test_driver.pl && grep -q UNUM_NODE test_driver.pl`,
		tests: `cd tests && perl run_make_tests.pl -make /usr/bin/make -srcdir .. $only 2>&1 | sed -un 's|^\([a-z]*/[^ ]*\) \.\.\.* *|\1 |p'`,
	},
	{
		name: "bash", pkg: "bash",
		build: `./configure -q CFLAGS=-O1 && make -s -j4 && make -s recho zecho printenv xcase && cp recho zecho printenv xcase tests/`,
		tests: `cd tests
export BUILD_DIR=${PWD%/*} THIS_SH=${PWD%/*}/bash PATH=$PWD:$PATH TMPDIR=$out BASH_TSTOUT=$out/tstout
for x in ${only:-run-*}; do
	case $x in run-all | run-minimal | run-gprof) continue ;; esac
	timeout --foreground -k 2 120 sh $x >/dev/null 2>&1
	echo $x $?
done`,
	},
	{
		name: "mksh", pkg: "mksh", needs: []string{"perl"},
		build: `sh Build.sh -r`,
		tests: `./test.sh -v -e UNUM_NODE=$UNUM_NODE 2>&1 | sed -un 's/^\(pass\|FAIL\) \(.*\)/\2 \1/p'`,
		known: map[string]string{
			"./check.t:comsub-torture":    scriptFromPipe,
			"./check.t:comsub-torture-io": scriptFromPipe,
		},
	},
	{
		// All but what is slow: a minute, natively, of forks without an exec.
		name: "busybox-ash", pkg: "busybox",
		build: `make defconfig && sed -i 's/CONFIG_TC=y/# CONFIG_TC is not set/' .config && make oldconfig && make -s -j4
cd shell/ash_test && ln -s ../../busybox ash && cp ../../.config . && for p in printenv recho zecho; do gcc -O2 -w -o $p $p.c; done`,
		tests: `cd shell/ash_test && eval $(sed -n 's/^CONFIG/export &/p' .config)
export PATH=$PWD:$PATH THIS_SH=$PWD/ash
rm -r ash-z_slow
for x in ${only:-ash-*/*.tests}; do
	[ -x $x ] && [ -e ${x%.tests}.right ] || continue
	(cd ${x%/*} && timeout --foreground -k 2 60 $THIS_SH ./${x##*/} 2>&1) | grep -va '^ash: using fallback suid' | diff -q - ${x%.tests}.right >/dev/null
	echo $x $?
done`,
	},
	{
		name: "grep", pkg: "grep", needs: []string{"perl"},
		build: `./configure -q CFLAGS=-O1 && make -s -j4 MAKEINFO=true`,
		tests: automake,
	},
	{
		name: "diffutils", pkg: "diffutils", needs: []string{"perl"},
		build: `./configure -q CFLAGS=-O1 && make -s -j4 MAKEINFO=true`,
		tests: automake,
	},
	{
		name: "findutils", pkg: "findutils", needs: []string{"perl"},
		build: `./configure -q CFLAGS=-O1 && make -s -j4 MAKEINFO=true`,
		tests: automake,
		known: map[string]string{"tests/find/files0-from.trs": otherDevice},
	},
	{
		// Debian's source is without the manual.
		name: "gawk", pkg: "gawk",
		build: `./configure -q CFLAGS=-O1 && { make -k -s -j4 || true; } && test -x gawk`,
		tests: `cd test && make -k check >$out/log 2>&1
for n in $(grep -x '[A-Za-z0-9_-]*' $out/log | sort -u); do
	[ -e _$n ] && echo $n FAIL || echo $n PASS
done`,
	},
	{
		// Another make than GNU's, which starts its jobs in its own way. Its
		// sources it looks for in a folder of its name.
		name: "bmake", pkg: "bmake",
		build: `ln -s . bmake && cd bmake && sh ./boot-strap -o Linux op=build && test -x Linux/bmake`,
		tests: `src=$PWD && cd $out
$src/Linux/bmake -r -m / TEST_MAKE=$src/Linux/bmake UNIT_TESTS=$src/unit-tests -f $src/unit-tests/Makefile -k all >/dev/null 2>&1
for o in *.out; do
	cmp -s $o $src/unit-tests/${o%.out}.exp
	echo ${o%.out} $?
done`,
	},
	{
		// All but the line editor and completion. A file a test.
		name: "zsh", pkg: "zsh",
		build: `./configure -q --with-tcsetpgrp CFLAGS=-O1 && make -s -j4 && make -s MODDIR=$PWD/Test/Modules install.modules`,
		tests: `cd Test
export ZTST_testdir=$PWD ZTST_srcdir=$PWD ZTST_exe=../Src/zsh
for x in ${only:-[A-W]*.ztst}; do
	timeout --foreground -k 2 180 ../Src/zsh +Z -f ./ztst.zsh ./$x >/dev/null 2>&1
	echo $x $?
done`,
		known: map[string]string{"W02jobs.ztst": interrupted},
	},
}

// verdicts is how the tests of a suite have ended, in the order of their ends.
type verdicts struct {
	names []string
	end   map[string]string
}

func parse(out string) verdicts {
	v := verdicts{end: map[string]string{}}
	for line := range strings.Lines(out) {
		name, end, _ := strings.Cut(strings.TrimSpace(line), " ")
		if _, ok := v.end[name]; !ok {
			v.names = append(v.names, name)
		}
		v.end[name] = end
	}
	return v
}

// differing lists the tests of both that ended otherwise than the control's,
// and those that did not run.
func (control verdicts) differing(got verdicts) (other map[string]string, missing []string) {
	other = map[string]string{}
	for _, name := range control.names {
		if g, ok := got.end[name]; !ok {
			missing = append(missing, name)
		} else if g != control.end[name] {
			other[name] = g
		}
	}
	return other, missing
}
