//! Faults on purpose, as stock kernels meet them: disks that fail, networks that lose and double frames.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::sync::Arc;
use std::thread;

use ampoule_vmm::VmBuilder;
use ampoule_vmm::config::{DiskConfig, NetConfig, VmConfig};
use ampoule_vmm::fault::{
    BlockEffect, BlockFault, BlockFaults, BlockOp, Direction, FaultyBlock, FaultyNet, NetEffect,
    NetFault, NetFaults, When,
};

use crate::embedded::{Guest, config};
use crate::guest::LOAD_VIRTIO;
use crate::host::{host as host_program, sparse};
use crate::net::host as busybox;

const EIO: i32 = 5;

/// Its writes and a flush fail on one disk: the file that they are of has an error, the rest of that file system is whole, and
/// the other disk works. A flush that failed once is never believed again.
pub(crate) fn a_disk_that_fails_on_purpose_fails_what_it_should() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    sparse(&image, 32 << 20);
    host_program(&format!("mkfs.ext4 -q {}", image.display()));
    let raw = folder.path().join("raw");
    sparse(&raw, 1 << 20);
    let (files, bare) = (BlockFaults::default(), BlockFaults::default());
    let wrap = |faults: &BlockFaults| {
        let faults = faults.clone();
        move |disk| Ok(Arc::new(FaultyBlock::new(disk, &faults)) as _)
    };
    let config = VmConfig {
        disk: vec![DiskConfig::new(&image), DiskConfig::new(&raw)],
        ..config()
    };
    let builder = VmBuilder::new(config);
    let builder = builder.wrap_disk("disk0", wrap(&files));
    let mut guest = Guest::boot(builder.wrap_disk("disk1", wrap(&bare)));
    guest.ask(LOAD_VIRTIO);
    guest.ask("mkdir /m && mount -t ext4 /dev/vda /m");
    guest.ask("dd if=/dev/zero of=/m/file bs=4k count=8 && cp /bin/busybox /m/good && sync");
    let write = "dd if=/bin/busybox of=/m/file bs=4k count=8 oflag=direct conv=notrunc";
    let third = When::Nth(3);
    files.set([BlockFault::new(
        BlockOp::Write,
        third,
        BlockEffect::Fail(EIO),
    )]);
    let said = guest.ask(&format!("! {write}"));
    assert!(said.to_lowercase().contains("i/o error"), "{said}");
    assert_eq!(files.struck(), 1);
    guest.ask(write);
    guest.ask("sync && umount /m && echo 3 > /proc/sys/vm/drop_caches");
    guest.ask("mount -t ext4 /dev/vda /m");
    guest.ask("cmp /bin/busybox /m/good && cmp -n 32768 /bin/busybox /m/file");
    guest.ask("umount /m");

    let flush = "dd if=/dev/zero of=/dev/vdb bs=4k count=1 conv=fsync";
    guest.ask(flush);
    bare.set([BlockFault::new(
        BlockOp::Flush,
        When::Nth(1),
        BlockEffect::Fail(EIO),
    )]);
    let said = guest.ask(&format!("! {flush}"));
    assert!(said.to_lowercase().contains("i/o error"), "{said}");
    bare.clear();
    guest.ask(&format!("! {flush}"));
    guest.ask("mount -t ext4 /dev/vda /m && cp /bin/busybox /m/more && sync && umount /m");
    guest.power_off();
    host_program(&format!("fsck.ext4 -fn {}", image.display()));
}

/// Every fifth frame is lost and every seventh comes twice, in either direction: what TCP moves is whole.
pub(crate) fn a_network_that_loses_frames_on_purpose_is_put_up_with() {
    const LEN: usize = 1 << 20;
    let faults = NetFaults::new(
        [Direction::FromGuest, Direction::ToGuest]
            .into_iter()
            .flat_map(|direction| {
                [
                    NetFault::new(direction, When::Every(5), NetEffect::Drop),
                    NetFault::new(direction, When::Every(7), NetEffect::Duplicate),
                ]
            }),
    );
    let config = VmConfig {
        net: vec![NetConfig::tap("ampoule60")],
        ..config()
    };
    let around = faults.clone();
    let builder = VmBuilder::new(config).wrap_net("net0", move |net| {
        Ok(Arc::new(FaultyNet::new(net, &around)?) as _)
    });
    let mut guest = Guest::boot(builder);
    guest.ask(LOAD_VIRTIO);
    busybox("ip addr add 10.83.60.1/24 dev ampoule60");
    busybox("ip link set ampoule60 up");
    guest.ask("ip addr add 10.83.60.2/24 dev eth0 && ip link set eth0 up");
    let listener = TcpListener::bind("10.83.60.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // The guest sends a file, and gets it back.
    let echoes = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = vec![0; LEN];
        stream.read_exact(&mut bytes).unwrap();
        drop(stream);
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let _ = stream.read(&mut [0]);
    });
    guest.ask("dd if=/dev/urandom of=/own.bin bs=64k count=16");
    let connect = format!("nc 10.83.60.1 {port}");
    guest.ask(&format!("{connect} </own.bin >/dev/null"));
    guest.ask(&format!("{connect} </dev/null >/back.bin"));
    guest.ask("cmp /own.bin /back.bin");
    assert!(faults.struck() > 10, "{}", faults.struck());
    assert_eq!(faults.lost(), 0);
    guest.power_off();
    echoes.join().unwrap();
}
