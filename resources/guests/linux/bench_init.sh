#!/bin/busybox sh
# PID 1 of the benches: says that it is there, does what the kernel's command line says, tells figures in lines that begin with
# "bench", and ends the machine, as the VMM likes it. Nothing is typed: not every VMM passes its input on.
/bin/busybox echo "bench init"
/bin/busybox mkdir -p /proc /sys /dev /tmp /usr
/bin/busybox mount -t proc proc /proc
for word in $(/bin/busybox cat /proc/cmdline); do
    case $word in bench.*=*) eval "${word#bench.}";; esac
done
# bench.end=poweroff|reboot
end() {
    /bin/busybox $end -f
}
if [ "$what" = boot ]; then end; fi

/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin
ln -s usr/lib64 /lib64
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
mount -t tmpfs shm /dev/shm
for module in $(cat /lib/order); do
    insmod /lib/$module.ko || { echo "FAIL cannot load $module"; end; }
done

# The disk of programs is the one that has a file system; what is left is the one to be measured.
for disk in /dev/vda /dev/vdb; do
    if [ -b $disk ] && mount -t ext4 -o ro $disk /usr 2>/dev/null; then tools=$disk; fi
done
for disk in /dev/vda /dev/vdb; do
    if [ -b $disk ] && [ $disk != "$tools" ]; then measured=$disk; fi
done
if [ "$what" != vsock ] && [ -z "$tools" ]; then echo "FAIL no disk of programs"; end; fi

# bench.seconds=N bench.loads=OPERATION:SIZE:DEPTH,...
disk() {
    for load in $(echo $loads | tr , ' '); do
        IFS=: read rw size depth <<END
$load
END
        fio --name=load --filename=$measured --rw=$rw --bs=$size --iodepth=$depth --direct=1 --ioengine=libaio --thread \
            --time_based --ramp_time=1 --runtime=$seconds --norandommap --output-format=json >/tmp/fio.json
        # Of reads, writes and trims, two are zero.
        echo "bench $load $(sed -n 's/.*"iops" : \([0-9.]*\),.*/\1/p' /tmp/fio.json | sort -n | tail -1)"
    done
}

net() {
    ip addr add 10.84.0.2/24 dev eth0
    ip link set lo up
    ip link set eth0 up
    # One client for each direction.
    iperf3 -s -1 >/dev/null &
    echo "bench ready"
    wait
    iperf3 -s -1 >/dev/null &
    echo "bench ready"
    wait
}

# bench.bytes=N
vsock() {
    vsock_echo send 1234 $bytes
    vsock_echo receive 1235 $bytes
}

$what
echo "bench end"
end
