#!/bin/busybox sh
# First process of the guests of `cargo lab boot`: runs /command, or a shell on the console, and powers off.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root TERM="${TERM:-linux}" USER=root

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
while read -r module; do
    insmod "/lib/$module.ko"
done </lib/order
hostname ampoule
ip link set lo up
# Hears the power button.
acpid -l /dev/null
cd

if [ -e /command ]; then
    # As the command writes it, without carriage returns; the lab finds it between the two marks.
    stty -onlcr </dev/console
    echo lab-begin
    sh /command
    status=$?
    # On a line of its own even where the command's last line is not complete.
    printf '\nlab-exit %s\n' "$status"
else
    setsid cttyhack sh -l
fi
poweroff -f
