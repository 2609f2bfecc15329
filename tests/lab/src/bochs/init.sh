#!/bin/busybox sh
# First process of the Intel lab host: loads the modules, lays a writable overlay over the machine's
# file tree (a disk image), and becomes the agent, which speaks over the second serial port. What
# goes wrong is said on the console; then the machine stops.
/bin/busybox --install -s /bin
PATH=/bin
export PATH

fail() {
    echo "lab host: $1"
    poweroff -f
}

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "/lib/$module.ko" || echo "lab host: module $module did not load"
done </lib/order
[ -c /dev/kvm ] || fail "no /dev/kvm: kvm-intel found no VT-x"

# Guests larger than this machine's memory are wanted; they touch little of it.
echo 1 >/proc/sys/vm/overcommit_memory

# The disks are found in the background.
for disk in sda sdb; do
    tries=0
    until [ -b "/dev/$disk" ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 200 ] || fail "no disk /dev/$disk"
        usleep 50000
    done
done
mount -t ext4 -o ro /dev/sda /lower || fail "the file tree cannot be mounted"
mount -t tmpfs -o mode=755 tmpfs /rw
mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work root /tree ||
    fail "the overlay cannot be mounted"

for folder in dev proc sys tmp run mnt root var/tmp; do
    mkdir -p "/tree/$folder"
done
chmod 1777 /tree/tmp /tree/var/tmp
mount -t devtmpfs dev /tree/dev
mkdir -p /tree/dev/pts /tree/dev/shm /tree/dev/net
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /tree/dev/pts
mount -t tmpfs -o mode=1777 tmpfs /tree/dev/shm
[ -c /tree/dev/net/tun ] || mknod /tree/dev/net/tun c 10 200
chmod 666 /tree/dev/kvm /tree/dev/net/tun
ln -sf /proc/self/fd /tree/dev/fd
ln -sf /proc/self/fd/0 /tree/dev/stdin
ln -sf /proc/self/fd/1 /tree/dev/stdout
ln -sf /proc/self/fd/2 /tree/dev/stderr
mount -t proc proc /tree/proc
mount -t sysfs sys /tree/sys
mount -t cgroup2 cgroup2 /tree/sys/fs/cgroup 2>/dev/null
mount -t tmpfs -o mode=755 tmpfs /tree/run
hostname lab-intel
ip link set lo up

# Folders shared read-write: each written through to the second disk at once, from where the
# developer's machine takes it back.
mkdir /tree/run/lab-rw
mount -t ext4 -o sync /dev/sdb /tree/run/lab-rw || fail "the read-write disk cannot be mounted"
while read -r number path; do
    mkdir -p "/tree$path"
    mount -o bind "/tree/run/lab-rw/$number" "/tree$path"
done </tree/run/lab-rw/folders

# Raw before the first byte arrives; the descriptor stays open, so the settings and what arrives
# stay, too.
exec 3<>/dev/ttyS1
stty -F /dev/ttyS1 115200 raw -echo -iexten clocal -crtscts 2>/dev/null
cp /agent /tree/run/lab-agent
echo "lab-host-ready" >&3
# The tree becomes the root of all: a kernel makes no user namespace for a program that is merely in a chroot.
cd /tree
mount -o move /tree / || fail "the tree cannot become the root"
setsid chroot . /bin/busybox sh /run/lab-agent 3>&-
status=$?
sync
echo "lab host: the agent ended with status $status"
poweroff -f
