/* bt: one small program with a verb for each thing that the cases do and that
 * no ordinary tool does, or none does by itself. Built by the test set-up. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/times.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

extern char **environ;
static int argc;
static char **argv;

static void die(const char *what) { printf("%s: %s\n", what, strerror(errno)); exit(99); }
static long num(int i) { return i < argc ? strtol(argv[i], 0, 10) : 0; }

static void say_status(int st) {
	if (WIFEXITED(st)) printf("exit %d\n", WEXITSTATUS(st));
	else if (WIFSIGNALED(st)) printf("signal %d%s\n", WTERMSIG(st), WCOREDUMP(st) ? " core" : "");
	else if (WIFSTOPPED(st)) printf("stopped %d\n", WSTOPSIG(st));
	else if (WIFCONTINUED(st)) printf("continued\n");
	fflush(stdout);
}

/* node: a number that tells nodes apart: the network namespace. */
static int v_node(void) {
	char b[100] = "";
	if (readlink("/proc/self/ns/net", b, sizeof b - 1) < 0) die("readlink");
	puts(b);
	return 0;
}

/* die SIG: by the default action of it. */
static int v_die(void) {
	int s = num(2);
	struct rlimit r;
	getrlimit(RLIMIT_CORE, &r);
	r.rlim_cur = argc > 3 ? r.rlim_max : 0;
	setrlimit(RLIMIT_CORE, &r);
	signal(s, SIG_DFL);
	sigset_t all;
	sigemptyset(&all);
	sigprocmask(SIG_SETMASK, &all, 0);
	raise(s);
	return 98;
}

static pid_t start(char **av) {
	fflush(stdout);
	pid_t p = fork();
	if (p == 0) { execvp(av[0], av); _exit(127); }
	if (p < 0) die("fork");
	return p;
}

/* wait CMD: run it and tell every change of its state. The file "continued" says
 * that it was seen to go on: one that ends before that was not. */
static int v_wait(void) {
	pid_t p = start(argv + 2);
	int st;
	do {
		if (waitpid(p, &st, WUNTRACED | WCONTINUED) < 0) die("waitpid");
		say_status(st);
		if (WIFSTOPPED(st)) kill(p, SIGCONT);
		if (WIFCONTINUED(st)) close(open("continued", O_CREAT | O_WRONLY, 0644));
	} while (!WIFEXITED(st) && !WIFSIGNALED(st));
	return 0;
}

/* waitid CMD: the same by waitid, with what siginfo says. */
static int v_waitid(void) {
	pid_t p = start(argv + 2);
	siginfo_t si = {0};
	if (waitid(P_PID, p, &si, WEXITED | WNOWAIT) < 0) die("waitid");
	printf("pid %s code %d status %d\n", si.si_pid == p ? "right" : "wrong", si.si_code, si.si_status);
	if (waitid(P_PID, p, &si, WEXITED) < 0) die("waitid");
	if (waitid(P_PID, p, &si, WEXITED) == 0) return 1;
	printf("then errno %d\n", errno);
	return 0;
}

/* chld CMD: what SIGCHLD brings. */
static int v_chld(void) {
	sigset_t s;
	sigemptyset(&s);
	sigaddset(&s, SIGCHLD);
	sigprocmask(SIG_BLOCK, &s, 0);
	pid_t p = fork();
	if (p == 0) { sigprocmask(SIG_UNBLOCK, &s, 0); execvp(argv[2], argv + 2); _exit(127); }
	siginfo_t si;
	if (sigwaitinfo(&s, &si) < 0) die("sigwaitinfo");
	printf("signo %d code %d status %d pid %s uid %d\n", si.si_signo, si.si_code, si.si_status, si.si_pid == p ? "right" : "wrong", si.si_uid);
	waitpid(p, 0, 0);
	return 0;
}

/* vfork N CMD: N times by vfork. */
static int v_vfork(void) {
	int bad = 0;
	for (long i = 0; i < num(2); i++) {
		int st;
		fflush(stdout);
		pid_t p = vfork();
		if (p == 0) { execvp(argv[3], argv + 3); _exit(127); }
		if (waitpid(p, &st, 0) != p || st) bad++;
	}
	printf("bad %d\n", bad);
	return 0;
}

static long per_thread;
static int bad_threads;
static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;
static void *spawner(void *arg) {
	for (long i = 0; i < per_thread; i++) {
		pid_t p;
		int st = -1;
		int e = posix_spawnp(&p, argv[4], 0, 0, argv + 4, environ);
		if (e || waitpid(p, &st, 0) != p || st) {
			pthread_mutex_lock(&mu);
			bad_threads++;
			pthread_mutex_unlock(&mu);
		}
	}
	return arg;
}

/* spawn T N CMD: by posix_spawn, N times from each of T threads. */
static int v_spawn(void) {
	pthread_t t[64];
	long n = num(2);
	per_thread = num(3);
	for (long i = 0; i < n; i++) pthread_create(&t[i], 0, spawner, 0);
	for (long i = 0; i < n; i++) pthread_join(t[i], 0);
	printf("bad %d\n", bad_threads);
	return 0;
}

/* spawnerr PATH: what posix_spawn says of it. */
static int v_spawnerr(void) {
	pid_t p;
	char *av[] = {argv[2], 0};
	printf("errno %d\n", posix_spawn(&p, argv[2], 0, 0, av, environ));
	return 0;
}

static void *exec_thread(void *arg) {
	execvp(argv[2], argv + 2);
	printf("exec: errno %d\n", errno);
	exit(1);
	return arg;
}

/* threadexec CMD: exec from a thread that is not the leader. */
static int v_threadexec(void) {
	pthread_t t;
	pthread_create(&t, 0, exec_thread, 0);
	pthread_join(t, 0);
	return 0;
}

/* exec PATH ARG...: and the errno if it fails. */
static int v_exec(void) {
	execv(argv[2], argv + 2);
	printf("errno %d\n", errno);
	return 0;
}

/* fexec PATH: by descriptor. */
static int v_fexec(void) {
	int fd = open(argv[2], O_PATH | O_CLOEXEC);
	fexecve(fd, argv + 2, environ);
	printf("errno %d\n", errno);
	return 0;
}

/* execbig ARGS ENV CMD: CMD gets so many KiB of each, in strings of 64 KiB, and
 * the errno if it fails. */
static int v_execbig(void) {
	static char *av[5000], *ev[5000];
	int a = 0, e = 0;
	for (int i = 4; i < argc; i++) av[a++] = argv[i];
	for (char **p = environ; *p; p++) ev[e++] = *p;
	for (long k = 0; k < num(2); k += 64) {
		char *s = malloc(65536);
		memset(s, 'a' + k / 64 % 26, 65535);
		s[65535] = 0;
		av[a++] = s;
	}
	for (long k = 0; k < num(3); k += 64) {
		char *s = malloc(65536);
		memset(s, 'A' + k / 64 % 26, 65535);
		sprintf(s, "BIG%ld", k);
		s[strlen(s)] = '=';
		s[65535] = 0;
		ev[e++] = s;
	}
	execvpe(argv[4], av, ev);
	printf("errno %d\n", errno);
	return 0;
}

/* count: of the arguments and the environment, with a sum. */
static int v_count(void) {
	unsigned long n = 0, sum = 0, en = 0;
	for (int i = 2; i < argc; i++)
		for (char *p = argv[i]; *p; p++) n++, sum = sum * 31 + *p;
	for (char **e = environ; *e; e++)
		if (!strncmp(*e, "BIG", 3))
			for (char *p = *e; *p; p++) en++, sum = sum * 31 + *p;
	printf("%d arguments, %lu bytes, %lu of environment, sum %lx\n", argc - 2, n, en, sum);
	return 0;
}

/* argv: each argument in hex, for bytes that are no text. */
static int v_argv(void) {
	for (int i = 2; i < argc; i++) {
		for (unsigned char *p = (void *)argv[i]; *p; p++) printf("%02x", *p);
		printf("\n");
	}
	return 0;
}

/* arg0 NAME CMD ARG...: CMD under another argv[0], or with none. */
static int v_arg0(void) {
	char *path = argv[3];
	argv[3] = argv[2];
	execvp(path, argv + 3);
	return 1;
}

static int v_name(void) {
	char comm[17] = "";
	prctl(PR_GET_NAME, comm);
	printf("argv[0] %s comm %s\n", argv[0], comm);
	return 0;
}

/* sigs: blocked, ignored and pending, the standard ones. */
static int v_sigs(void) {
	sigset_t b, p;
	sigprocmask(0, 0, &b);
	sigpending(&p);
	for (int s = 1; s < 65; s++) {
		struct sigaction a;
		if (sigaction(s, 0, &a)) continue;
		if (a.sa_handler == SIG_IGN) printf("ignored %d\n", s);
		if (sigismember(&b, s) == 1) printf("blocked %d\n", s);
		if (sigismember(&p, s) == 1) printf("pending %d\n", s);
	}
	return 0;
}

/* sigexec block|ignore|pend SIG CMD. */
static int v_sigexec(void) {
	int s = num(3);
	sigset_t m;
	sigemptyset(&m);
	sigaddset(&m, s);
	if (!strcmp(argv[2], "ignore")) signal(s, SIG_IGN);
	else sigprocmask(SIG_BLOCK, &m, 0);
	if (!strcmp(argv[2], "pend")) raise(s);
	execvp(argv[4], argv + 4);
	return 127;
}


/* trap FILE SIG...: make FILE, then tell which of the signals comes; after
 * three seconds, none. */
static int v_trap(void) {
	sigset_t m;
	sigemptyset(&m);
	for (int i = 3; i < argc; i++) sigaddset(&m, num(i));
	sigprocmask(SIG_BLOCK, &m, 0);
	close(open(argv[2], O_CREAT | O_WRONLY, 0644));
	struct timespec t = {10, 0};
	siginfo_t si;
	int s;
	do s = sigtimedwait(&m, &si, &t); /* a stop and its end interrupt it */
	while (s < 0 && errno == EINTR);
	if (s < 0) printf("none\n");
	else printf("signal %d\n", s);
	return 0;
}

/* trapn FILE SIG N: like trap, for N signals; tells how many came. Real-time
 * ones with their values. */
static int v_trapn(void) {
	sigset_t m;
	int sig = num(3);
	sigemptyset(&m);
	sigaddset(&m, sig);
	sigprocmask(SIG_BLOCK, &m, 0);
	close(open(argv[2], O_CREAT | O_WRONLY, 0644));
	struct timespec t = {10, 0};
	int n = 0;
	for (; n < num(4); n++) {
		siginfo_t si;
		if (sigtimedwait(&m, &si, &t) < 0) break;
		if (sig >= SIGRTMIN) printf("value %d\n", si.si_value.sival_int);
	}
	printf("%d of them\n", n);
	return 0;
}

/* queue PID SIG FROM TO: sigqueue with each value. */
static int v_queue(void) {
	for (long v = num(4); v <= num(5); v++) {
		union sigval sv = {.sival_int = v};
		while (sigqueue(num(2), num(3), sv)) {
			if (errno != EAGAIN) die("sigqueue");
			usleep(1000);
		}
	}
	return 0;
}

/* kill PID SIG: and the errno. */
static int v_kill(void) {
	int r = kill(num(2), num(3));
	printf("kill %d errno %d\n", r, r ? errno : 0);
	return 0;
}

/* ids: everything that says who this is, but PIDs. */
static int v_ids(void) {
	uid_t r, e, s;
	gid_t rg, eg, sg;
	gid_t gs[64];
	getresuid(&r, &e, &s);
	getresgid(&rg, &eg, &sg);
	printf("uid %d %d %d gid %d %d %d groups", r, e, s, rg, eg, sg);
	int n = getgroups(64, gs);
	for (int i = 0; i < n; i++) printf(" %d", gs[i]);
	printf("\n");
	return 0;
}

/* caps: as the kernel names them. */
static int v_caps(void) {
	FILE *f = fopen("/proc/self/status", "r");
	char l[300];
	while (fgets(l, sizeof l, f))
		if (!strncmp(l, "Cap", 3) || !strncmp(l, "NoNewPrivs", 10)) fputs(l, stdout);
	return 0;
}

/* limits: every resource limit. */
static int v_limits(void) {
	for (int i = 0; i < RLIM_NLIMITS; i++) {
		struct rlimit r;
		getrlimit(i, &r);
		printf("%d %ld %ld\n", i, (long)r.rlim_cur, (long)r.rlim_max);
	}
	return 0;
}

/* sched: priority, policy, I/O priority, processors, OOM score and timer slack. */
static int v_sched(void) {
	struct sched_param p;
	sched_getparam(0, &p);
	printf("nice %d policy %d prio %d ioprio %ld", getpriority(PRIO_PROCESS, 0), sched_getscheduler(0), p.sched_priority,
	       syscall(SYS_ioprio_get, 1, 0));
	FILE *f = fopen("/proc/self/oom_score_adj", "r");
	int oom = -9999;
	if (f) fscanf(f, "%d", &oom);
	printf(" oom %d slack %d dumpable %d\n", oom, prctl(PR_GET_TIMERSLACK), prctl(PR_GET_DUMPABLE));
	return 0;
}

/* family: how the ids are related, not what they are. */
static int v_family(void) {
	pid_t p = getpid();
	printf("leads its group %d, its session %d; parent is %s\n", getpgrp() == p, getsid(0) == p,
	       argc > 2 ? (getppid() == num(2) ? "right" : "wrong") : "unknown");
	if (argc > 3) printf("group %s\n", getpgrp() == num(3) ? "right" : "wrong");
	if (argc > 4) printf("session %s\n", getsid(0) == num(4) ? "right" : "wrong");
	return 0;
}

static int v_ppid(void) { printf("%d\n", getppid()); return 0; }
static int v_pid(void) { printf("%d\n", getpid()); return 0; }
static int v_pgid(void) { printf("%d\n", getpgrp()); return 0; }
static int v_sid(void) { printf("%d\n", getsid(0)); return 0; }

/* burn MS: that much user time. */
static int v_burn(void) {
	struct timespec t;
	volatile unsigned long x = 0;
	do {
		for (int i = 0; i < 100000; i++) x += i;
		clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	} while (t.tv_sec * 1000 + t.tv_nsec / 1000000 < num(2));
	return 0;
}

static int at_least(const char *what, double got, double want) {
	if (got >= want * 0.8) printf("%s enough\n", what);
	else printf("%s only %.3f of %.3f\n", what, got, want);
	return 0;
}

/* usage MS CMD: do getrusage, times and wait4 know what CMD used? */
static int v_usage(void) {
	double want = num(2) / 1000.0;
	pid_t p = start(argv + 3);
	struct rusage w, c;
	int st;
	wait4(p, &st, 0, &w);
	getrusage(RUSAGE_CHILDREN, &c);
	struct tms t;
	times(&t);
	say_status(st);
	at_least("wait4", w.ru_utime.tv_sec + w.ru_utime.tv_usec / 1e6, want);
	at_least("getrusage", c.ru_utime.tv_sec + c.ru_utime.tv_usec / 1e6, want);
	at_least("times", (double)t.tms_cutime / sysconf(_SC_CLK_TCK), want);
	at_least("maxrss", c.ru_maxrss, 500);
	return 0;
}

/* spew N [SEED]: N bytes that are never the same twice in a row. */
static int v_spew(void) {
	uint64_t x = 88172645463325252ull + num(3);
	long n = num(2);
	static unsigned char b[65536];
	while (n > 0) {
		size_t k = n < (long)sizeof b ? n : sizeof b;
		for (size_t i = 0; i < k; i++) {
			x ^= x << 13; x ^= x >> 7; x ^= x << 17;
			b[i] = x >> 24;
		}
		for (size_t o = 0; o < k;) {
			ssize_t w = write(1, b + o, k - o);
			if (w < 0) { fprintf(stderr, "spew: %s\n", strerror(errno)); return 1; }
			o += w;
		}
		n -= k;
	}
	return 0;
}

/* sum: how many bytes stdin has, and a sum of them. */
static int v_sum(void) {
	static unsigned char b[65536];
	uint64_t n = 0, h = 1469598103934665603ull;
	ssize_t k;
	while ((k = read(0, b, sizeof b)) > 0) {
		for (ssize_t i = 0; i < k; i++) h = (h ^ b[i]) * 1099511628211ull;
		n += k;
	}
	if (k < 0) die("read");
	printf("%lu bytes, sum %016lx\n", n, h);
	return 0;
}

/* take N: exactly N bytes of stdin to stdout, not one read ahead. */
static int v_take(void) {
	for (long n = num(2); n > 0;) {
		char b[4096];
		ssize_t k = read(0, b, n < 4096 ? n : 4096);
		if (k <= 0) return k < 0;
		if (write(1, b, k) != k) return 1;
		n -= k;
	}
	return 0;
}

/* records N LEN TAG: N writes of LEN bytes each, each a line of TAG. */
static int v_records(void) {
	long n = num(2), len = num(3);
	char *b = malloc(len);
	memset(b, argv[4][0], len);
	b[len - 1] = '\n';
	for (long i = 0; i < n; i++)
		if (write(1, b, len) != len) { fprintf(stderr, "records: %s\n", strerror(errno)); return 1; }
	return 0;
}

/* pos [N]: tell where stdin stands, and seek to N. */
static int v_pos(void) {
	off_t o = lseek(0, 0, SEEK_CUR);
	if (o < 0) printf("errno %d\n", errno);
	else printf("at %ld\n", (long)o);
	if (argc > 2 && lseek(0, num(2), SEEK_SET) < 0) die("lseek");
	return 0;
}

/* nonblock: is it set on stdin; with an argument, set or clear it. */
static int v_nonblock(void) {
	int f = fcntl(0, F_GETFL);
	printf("nonblock %d\n", !!(f & O_NONBLOCK));
	if (argc > 2) fcntl(0, F_SETFL, num(2) ? f | O_NONBLOCK : f & ~O_NONBLOCK);
	return 0;
}

/* eagain: a read of stdin without waiting, and what poll says before. */
static int v_eagain(void) {
	struct pollfd p = {0, POLLIN, 0};
	int r = poll(&p, 1, num(2));
	printf("poll %d %s%s\n", r, p.revents & POLLIN ? "IN" : "", p.revents & POLLHUP ? "HUP" : "");
	return 0;
}

/* fionread: how much is waiting on stdin. */
static int v_fionread(void) {
	int n = -1;
	if (ioctl(0, FIONREAD, &n)) printf("errno %d\n", errno);
	else printf("%d waiting\n", n);
	return 0;
}

/* fds: which of 0 to 19 are open, what they are, and how. */
static int v_fds(void) {
	for (int i = 0; i < 20; i++) {
		struct stat st;
		if (fstat(i, &st)) continue;
		int f = fcntl(i, F_GETFL) & (O_ACCMODE | O_APPEND | O_NONBLOCK);
		printf("%d %s %o cloexec %d\n", i, S_ISREG(st.st_mode) ? "file" : S_ISFIFO(st.st_mode) ? "pipe" : S_ISCHR(st.st_mode) ? "char" :
		       S_ISDIR(st.st_mode) ? "dir" : "other", f, fcntl(i, F_GETFD));
	}
	return 0;
}

/* same A B: do two descriptors share one description? */
static int v_same(void) {
	pid_t p = getpid();
	long r = syscall(SYS_kcmp, p, p, 0, num(2), num(3));
	printf("%s\n", r == 0 ? "one" : r < 0 ? strerror(errno) : "two");
	return 0;
}

/* locktry FILE: can it be locked now, by flock and by fcntl? */
static int v_locktry(void) {
	int fd = open(argv[2], O_RDWR);
	struct flock l = {.l_type = F_WRLCK};
	int a = flock(fd, LOCK_EX | LOCK_NB) ? errno : 0;
	int b = fcntl(fd, F_SETLK, &l) ? errno : 0;
	printf("flock %d fcntl %d\n", a, b);
	return 0;
}

/* winsize: of stdin's terminal. With an argument, first wait for SIGWINCH. */
static int v_winsize(void) {
	struct winsize w;
	sigset_t m;
	sigemptyset(&m);
	sigaddset(&m, SIGWINCH);
	sigprocmask(SIG_BLOCK, &m, 0);
	ioctl(0, TIOCGWINSZ, &w);
	printf("is %dx%d\n", w.ws_row, w.ws_col);
	fflush(stdout);
	if (argc > 2) {
		struct timespec t = {10, 0};
		if (sigtimedwait(&m, 0, &t) < 0) printf("none came\n");
		ioctl(0, TIOCGWINSZ, &w);
		printf("now %dx%d\n", w.ws_row, w.ws_col);
	}
	return 0;
}

/* raw N: read N keys in raw mode, one by one, and tell them in hex. */
static int v_raw(void) {
	struct termios o, t;
	if (tcgetattr(0, &o)) die("tcgetattr");
	t = o;
	cfmakeraw(&t);
	tcsetattr(0, TCSADRAIN, &t);
	dprintf(1, "raw now\r\n");
	for (long i = 0; i < num(2); i++) {
		unsigned char c;
		if (read(0, &c, 1) != 1) break;
		dprintf(1, "<%02x>", c);
	}
	tcsetattr(0, TCSADRAIN, &o);
	dprintf(1, "\ncooked again\n");
	return 0;
}

/* tty: what stdin, stdout and /dev/tty are. */
static int v_tty(void) {
	int fd = open("/dev/tty", O_RDWR);
	printf("%d%d%d devtty %s foreground %d session %d\n", isatty(0), isatty(1), isatty(2), fd >= 0 ? "yes" : "no",
	       fd >= 0 && tcgetpgrp(fd) == getpgrp(), fd >= 0 && tcgetsid(fd) == getsid(0));
	return 0;
}

/* sleep MS, and say so first. */
static int v_sleep(void) {
	struct timespec t = {num(2) / 1000, num(2) % 1000 * 1000000};
	while (nanosleep(&t, &t) && errno == EINTR) ;
	return 0;
}

/* orphan FILE: a grandchild whose parent ends writes FILE afterwards. */
static int v_orphan(void) {
	int p[2];
	pipe(p);
	fflush(stdout);
	if (fork() == 0) {
		if (fork() == 0) {
			char c;
			close(p[1]);
			read(p[0], &c, 1); /* until the parent is gone */
			int fd = open(argv[2], O_CREAT | O_WRONLY, 0644);
			dprintf(fd, "parent is %s\n", getppid() == 1 ? "init" : "somebody");
			_exit(0);
		}
		_exit(0);
	}
	wait(0);
	return 0;
}

/* itimer CMD: does a real-time interval timer survive the exec? */
static int v_itimer(void) {
	struct itimerval t = {{0, 0}, {0, num(2) * 1000}};
	setitimer(ITIMER_REAL, &t, 0);
	execvp(argv[3], argv + 3);
	return 127;
}

/* pdeathsig: set before the exec, is it kept? */
static int v_pdeathsig(void) {
	int s = -1;
	if (argc > 2) {
		prctl(PR_SET_PDEATHSIG, num(2));
		execvp(argv[3], argv + 3);
	}
	prctl(PR_GET_PDEATHSIG, &s);
	printf("pdeathsig %d\n", s);
	return 0;
}

/* nnp CMD: with no_new_privs. */
static int v_nnp(void) {
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	execvp(argv[2], argv + 2);
	return 127;
}

/* sub CMD: as a child subreaper; it tells how many orphans came to it. */
static int v_sub(void) {
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	pid_t p = start(argv + 2);
	int st, others = 0;
	for (pid_t q; (q = wait(&st)) > 0;) {
		if (q == p) say_status(st);
		else others++;
	}
	printf("orphans %d\n", others);
	return 0;
}

/* rate N CMD: N times by fork and exec, every one's status is looked at. */
static int v_rate(void) {
	long bad = 0;
	for (long i = 0; i < num(2); i++) {
		int st;
		pid_t p = start(argv + 3);
		if (waitpid(p, &st, 0) != p || st) bad++;
	}
	printf("bad %ld\n", bad);
	return 0;
}

/* burst N CMD: N at once. */
static int v_burst(void) {
	long n = num(2), bad = 0;
	for (long i = 0; i < n; i++) start(argv + 3);
	for (long i = 0; i < n; i++) {
		int st;
		if (wait(&st) < 0 || st) bad++;
	}
	printf("bad %ld, more %d\n", bad, wait(0) > 0);
	return 0;
}

static struct { const char *name; int (*f)(void); } verbs[] = {
	{"node", v_node}, {"die", v_die}, {"wait", v_wait}, {"waitid", v_waitid}, {"chld", v_chld}, {"vfork", v_vfork},
	{"spawn", v_spawn}, {"spawnerr", v_spawnerr}, {"threadexec", v_threadexec}, {"exec", v_exec}, {"fexec", v_fexec},
	{"execbig", v_execbig}, {"count", v_count}, {"argv", v_argv}, {"arg0", v_arg0}, {"name", v_name}, {"sigs", v_sigs},
	{"sigexec", v_sigexec}, {"trap", v_trap}, {"trapn", v_trapn}, {"queue", v_queue}, {"kill", v_kill}, {"ids", v_ids},
	{"caps", v_caps}, {"limits", v_limits}, {"sched", v_sched}, {"family", v_family}, {"ppid", v_ppid}, {"pid", v_pid},
	{"pgid", v_pgid}, {"sid", v_sid}, {"burn", v_burn}, {"usage", v_usage}, {"spew", v_spew}, {"sum", v_sum},
	{"take", v_take}, {"records", v_records}, {"pos", v_pos}, {"nonblock", v_nonblock}, {"eagain", v_eagain},
	{"fionread", v_fionread}, {"fds", v_fds}, {"same", v_same}, {"locktry", v_locktry}, {"winsize", v_winsize},
	{"raw", v_raw}, {"tty", v_tty}, {"sleep", v_sleep}, {"orphan", v_orphan}, {"itimer", v_itimer},
	{"pdeathsig", v_pdeathsig}, {"nnp", v_nnp}, {"sub", v_sub}, {"rate", v_rate}, {"burst", v_burst},
};

int main(int c, char **v) {
	argc = c;
	argv = v;
	for (size_t i = 0; c > 1 && i < sizeof verbs / sizeof *verbs; i++)
		if (!strcmp(v[1], verbs[i].name)) return verbs[i].f();
	if (c == 1) return v_name();
	fprintf(stderr, "bt: no verb %s\n", v[1]);
	return 97;
}
