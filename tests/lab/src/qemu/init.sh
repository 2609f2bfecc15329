#!/bin/busybox sh
# First process of the AMD lab host: loads the modules, lays a writable overlay over the machine's own file tree, shared
# by virtiofs, and starts the agent on a virtio-serial port. What goes wrong is said on the console; then the machine
# stops.
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
[ -c /dev/kvm ] || fail "no /dev/kvm: kvm-amd found no AMD-V"

# Guests larger than this machine's memory are wanted; they touch little of it.
echo 1 >/proc/sys/vm/overcommit_memory

mount -t virtiofs -o ro host /lower || fail "the file tree cannot be mounted"
mount -t tmpfs -o mode=755 tmpfs /rw
mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work root /tree ||
    fail "the overlay cannot be mounted"
# A file server without root's rights cannot open other users' files the way an overlay does (O_NOATIME). Then the tree
# is read-only, save /tmp where that does not hide the agent.
chroot /tree /bin/true 2>/dev/null || {
    umount /tree
    mount -o bind /lower /tree
    case $(cat /lib/agent) in
    /tmp/*) ;;
    *) mount -t tmpfs -o mode=1777 tmpfs /tree/tmp ;;
    esac
}

for folder in dev proc sys run tmp; do
    [ -d "/tree/$folder" ] || mkdir "/tree/$folder"
done
chmod 1777 /tree/tmp 2>/dev/null
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
hostname lab-amd
ip link set lo up

while read -r tag path; do
    mount -t virtiofs "$tag" "/tree$path" || fail "$path cannot be mounted"
done </lib/read-write

# The port is announced in the background; its name holds the number of its virtio device.
tries=0
until port=$(ls /dev/vport*p1 2>/dev/null); do
    tries=$((tries + 1))
    [ "$tries" -lt 1000 ] || fail "no port for the agent"
    usleep 20000
done
# The tree becomes the root of all: a kernel makes no user namespace for a program that is merely in a chroot.
cd /tree
mount -o move /tree / || fail "the tree cannot become the root"
chroot . "$(cat /lib/agent)" agent "$port"
echo "lab host: the agent ended with status $?"
poweroff -f
