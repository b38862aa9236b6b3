# A sample of what must be as on one machine. Its output is compared byte for
# byte with that of a native run, so it prints nothing that depends on where
# and when.
cd "$(mktemp -d)" || exit 1
exec 2>&1
say() { echo "$@"; }

sh -c 'exit 3'; say "exit $?"
{ sh -c 'kill -TERM $$'; } 2> /dev/null; say "term $?"
{ sh -c 'kill -KILL $$'; } 2> /dev/null; say "kill $?"
seq 5 | sort -r | tr '\n' ' ' | cat | wc -c
say "$(printf 'a\nb\n' | head -1)"
cat << END
here $(sh -c 'echo document')
END
cat <(sh -c 'echo process') <(sh -c 'echo substitution')
seq 3 > f; (head -1 > /dev/null; cat) < f
seq 100000 | (head -c 10 > /dev/null; cat) | tail -n 1
(sh -c 'echo a'; sh -c 'echo b'; sh -c 'echo c') > g; cat g
(sh -c 'echo a' & sh -c 'echo bb' & sh -c 'echo ccc' & wait) > g; sort g
for i in 1 2 3 4 5 6 7 8; do sh -c "echo line $i" >> h & done; wait; sort h
yes | head -1; say "${PIPESTATUS[0]} ${PIPESTATUS[1]}"
nosuchcommand 2> /dev/null; say "enoent $?"
touch n; ./n 2> /dev/null; say "eacces $?"
printf 'echo script $0\n' > s; chmod() { /bin/busybox chmod "$@"; }; chmod +x s; ./s
(umask 027; sh -c umask)
(ulimit -n 77; sh -c 'ulimit -n')
nice -n 5 nice
(trap '' INT; sh -c 'kill -INT $$; echo ignored')
head -c 1000000 /dev/zero | sha256sum
seq 20 | xargs -P 4 -n 5 echo | sort
timeout 0.5 sleep 10; say "timeout $?"
flock l sh -c 'echo locked'
setsid sh -c 'echo session'
printf 'all: a b c d\n%%:\n\t@echo make $@ > $@.out\n' > Makefile; make -s -j4; cat ?.out
sleep 10 & kill -STOP $!; kill -CONT $!; kill $!; wait $! 2> /dev/null; say "killed $?"
(sleep 0.2; exit 4) & wait -n $!; say "wait $?"
x=$(head -c 200000 /dev/zero | tr '\0' x); sh -c 'echo ${#1}' sh "${x:0:100000}"; X="${x:0:120000}" sh -c 'echo ${#X}'
i=0; while [ $i -lt 40 ]; do /bin/true || say "true failed"; i=$((i + 1)); done; say "done $i"
