//! Linux guests of VMs in this process: what a program that embeds the library has of them besides a console.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ampoule_tests::harness::kernel;
use ampoule_vmm::config::{DiskConfig, MemorySize, NetConfig, VmConfig, VsockConfig};
use ampoule_vmm::fault::{
    BlockEffect, BlockFault, BlockFaults, BlockOp, Direction, FaultyBlock, FaultyNet, NetEffect,
    NetFault, NetFaults, When,
};
use ampoule_vmm::{ConsoleStream, ExitReason, VmBuilder, VmHandle, VsockStream};

use crate::guest::{LOAD_VIRTIO, initramfs};
use crate::host::{host as host_program, sparse};
use crate::net::host as busybox;

const EIO: i32 = 5;

/// After which a wait counts as one that never ends.
const PATIENCE: Duration = Duration::from_secs(300);

/// A guest with a shell on its console.
struct Guest {
    vm: VmHandle,
    console: ConsoleStream,
    /// Printed, and not looked at.
    printed: String,
}

/// A VM of the tests' guest.
fn config() -> VmConfig {
    VmConfig {
        kernel: Some(kernel("6.1").join("vmlinux")),
        initrd: Some(initramfs().into()),
        append: Some("quiet".into()),
        memory: MemorySize::mib(256),
        ..VmConfig::default()
    }
}

impl Guest {
    /// Boots it to its shell, and loads its drivers.
    fn boot(builder: VmBuilder) -> Self {
        let vm = builder.build().unwrap().start().unwrap();
        let mut console = vm.console().unwrap();
        console.set_read_timeout(Some(PATIENCE));
        let mut guest = Self {
            vm,
            console,
            printed: String::new(),
        };
        guest.read_until("guest ready: ");
        guest.ask(LOAD_VIRTIO);
        guest
    }

    fn send(&mut self, line: &str) {
        writeln!(self.console, "{line}").unwrap();
    }

    /// What is printed until `text` is.
    fn read_until(&mut self, text: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            if let Some(at) = self.printed.find(text) {
                let rest = self.printed.split_off(at + text.len());
                return std::mem::replace(&mut self.printed, rest);
            }
            let count = self.console.read(&mut buffer);
            let count = count.unwrap_or_else(|err| panic!("{err}: {}", self.printed));
            assert!(count > 0, "it ended: {}", self.printed);
            self.printed += &String::from_utf8_lossy(&buffer[..count]);
        }
    }

    /// Has the shell do something, which is to succeed; what it printed.
    #[track_caller]
    fn ask(&mut self, line: &str) -> String {
        // The shell's echo of the line must not pass for the answer.
        self.send(&format!("{line}; echo answe''red $?"));
        let said = self.read_until("answered ");
        let status = self.read_until("\n");
        assert_eq!(status.trim(), "0", "{line}: {said}");
        said
    }

    fn power_off(&mut self) {
        self.send("poweroff -f");
        assert_eq!(self.vm.wait_timeout(PATIENCE), Some(ExitReason::PowerOff));
    }
}

/// Sends back what comes, to its end.
fn echo(mut stream: &VsockStream) -> u64 {
    let count = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    count
}

/// Refused where nobody listens, echoed elsewhere, both ways, without a path on the host; ended with the VM.
pub(crate) fn the_program_talks_to_its_guest_by_vsock() {
    const LEN: usize = 1 << 20;
    let config = VmConfig {
        vsock: Some(VsockConfig {
            cid: 3,
            socket: None,
        }),
        ..config()
    };
    let mut guest = Guest::boot(VmBuilder::new(config));
    let vsock = guest.vm.vsock().unwrap();
    let refused = vsock.connect_timeout(51, PATIENCE).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

    guest.send("vsock_echo listen 52");
    guest.read_until("vsock listens");
    let mut stream = vsock.connect_timeout(52, PATIENCE).unwrap();
    let bytes: Vec<u8> = (0..LEN).map(|at| (at / 251) as u8 ^ at as u8).collect();
    let echoed = thread::scope(|scope| {
        let mut sender = stream.try_clone().unwrap();
        let bytes = &bytes;
        scope.spawn(move || {
            sender.write_all(bytes).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
        });
        let mut echoed = Vec::new();
        stream.read_to_end(&mut echoed).unwrap();
        echoed
    });
    assert!(echoed == bytes, "{} bytes came back", echoed.len());
    guest.read_until("vsock echoed");

    let refused = "vsock_echo connect 1234 1 2>&1 | grep 'reset by peer'";
    guest.ask(refused);
    let listener = vsock.listen(1234).unwrap();
    guest.send(&format!("vsock_echo connect 1234 {LEN}"));
    let stream = listener.accept_timeout(PATIENCE).unwrap();
    assert_eq!(echo(&stream), LEN as u64);
    guest.read_until("vsock transferred");
    drop(listener);
    guest.ask(refused);

    guest.send("vsock_echo listen 53");
    guest.read_until("vsock listens");
    let mut stream = vsock.connect_timeout(53, PATIENCE).unwrap();
    guest.vm.stop();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(guest.vm.wait(), ExitReason::Stopped);
    let ended = vsock.connect(53).unwrap_err();
    assert_eq!(ended.kind(), std::io::ErrorKind::BrokenPipe);
}

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
    let guest = &mut guest;
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
    let guest = &mut guest;
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
