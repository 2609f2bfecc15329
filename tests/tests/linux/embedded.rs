//! Linux guests of VMs in this process: what a program that embeds the library has of them besides a console.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use ampoule_tests::harness::kernel;
use ampoule_vmm::config::{MemorySize, VmConfig, VsockConfig};
use ampoule_vmm::{ConsoleStream, ExitReason, VmBuilder, VmHandle, VsockStream};

use crate::guest::{LOAD_VIRTIO, initramfs};

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

    fn power_off(mut self) {
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
