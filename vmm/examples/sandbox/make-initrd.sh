#!/bin/sh
# make-initrd.sh OUTPUT [MODULES]: the initrd of the sandbox example. Needs a C compiler and busybox-static; MODULES is the
# folder of the modules of the kernel that will be booted, /lib/modules/$(uname -r) unless it is given.
set -eu
output=$(realpath "$1")
modules=${2:-/lib/modules/$(uname -r)}
here=$(dirname "$(realpath "$0")")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

mkdir -p "$folder/bin" "$folder/dev" "$folder/proc" "$folder/tmp" "$folder/modules"
cc -static -O2 -Wall -o "$folder/init" "$here/init.c"
cp /bin/busybox "$folder/bin/"
for name in $(/bin/busybox --list); do
    [ "$name" = busybox ] || ln -s busybox "$folder/bin/$name"
done
# In the order in which they need each other; those that the kernel has built in are not there.
number=10
for name in virtio_ring virtio virtio_mmio vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport; do
    found=$(find "$modules" -name "$name.ko*" | head -n 1)
    case $found in
        "") continue ;;
        *.xz) xz -dc "$found" >"$folder/modules/$number-$name.ko" ;;
        *.zst) zstd -qdc "$found" >"$folder/modules/$number-$name.ko" ;;
        *) cp "$found" "$folder/modules/$number-$name.ko" ;;
    esac
    number=$((number + 1))
done
(cd "$folder" && find . | busybox cpio -o -H newc) >"$output"
