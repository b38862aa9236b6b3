// Package vmtest boots a real kernel under qemu and runs commands in it, to
// see on an older kernel what the machine that runs the tests cannot show.
//
// A Kit is a kernel package of Debian, unpacked into a cache directory, and
// qemu. An Image is an initramfs of this package's own making: an init, busybox
// and whatever files and programs are added, with the libraries that these
// need and the kernel modules by name, in the order in which they load. The
// init moves all of it to a tmpfs, which then is a root like any other
// (pivot_root refuses the initramfs itself), mounts what a machine has
// mounted, runs the commands one by one and reports each by the second serial
// line; the first is the console.
//
// Everything is emulated (tcg): no /dev/kvm is needed, nothing outside the
// cache directory is touched, and the machine has no network but its own lo.
package vmtest
