#!/bin/busybox sh
# pid 1 of the machine: first in the initramfs, then, with "moved", in a tmpfs.
b=/bin/busybox
if [ "$1" != moved ]; then
	$b mount -t tmpfs -o size=80%,mode=755 tmpfs /new
	for f in /*; do
		case $f in /new | /dev | /init) ;; *) $b cp -a "$f" /new/ ;; esac
	done
	$b cp -a /init /new/init
	$b mkdir -p /new/new /new/dev
	$b mknod /new/dev/console c 5 1
	exec $b switch_root /new /init moved
fi

export PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin HOME=/root TERM=linux
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
$b mkdir -p /dev/pts /dev/shm
$b mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
$b mount -t tmpfs -o mode=1777 shm /dev/shm
$b mount -t tmpfs -o mode=755 run /run
$b mount -t cgroup2 cgroup2 /sys/fs/cgroup
[ -e /dev/fd ] || $b ln -s /proc/self/fd /dev/fd
$b mount --make-rshared /
$b ip link set lo up
$b hostname vm

for ko in /vm/modules/*; do
	[ -e "$ko" ] && { $b insmod "$ko" || echo "init: $ko did not load"; }
done

# Each command's status and output go to the second serial line.
$b stty -F /dev/ttyS1 raw -echo
for c in /vm/cmd/*; do
	[ -e "$c" ] || continue
	n=${c##*/}
	read -r limit < /vm/timeout/$n
	echo "init: command $n" > /dev/console
	$b setsid $b timeout -s KILL "$limit" "$c" < /dev/null > /run/out 2>&1
	st=$?
	{ echo "vmtest $n $st $($b stat -c %s /run/out)"; $b cat /run/out; } > /dev/ttyS1
done
echo "vmtest end 0 0" > /dev/ttyS1
$b stty -F /dev/ttyS1 raw -echo # waits for the output to drain
$b sync
$b poweroff -f
