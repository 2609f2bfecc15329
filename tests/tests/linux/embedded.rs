//! Linux guests in VMs of this process: the library, as a program that embeds it uses it.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ampoule_tests::harness::{kernel, tools};
use ampoule_vmm::config::{DiskConfig, DiskEngine, MemorySize, NetConfig, VmConfig, VsockConfig};
use ampoule_vmm::devices::{BusDevice, EventFd, EventLine};
use ampoule_vmm::{ConsoleStream, ExitReason, VmBuilder, VmHandle, VmState, VsockStream};
use ampoule_vmm::{OwnBusDevice, Placement};

use crate::guest::{LOAD_TOOLS, LOAD_VIRTIO, initramfs};
use crate::net::host;
use crate::net_load::Server;
use crate::vsock::expect_echo;

/// How long the guests here are paused.
const PAUSE: Duration = Duration::from_secs(10);

/// Longer than a guest takes for anything, in an emulated machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A guest with a shell on its console.
pub(crate) struct Guest {
    pub(crate) vm: VmHandle,
    console: ConsoleStream,
    /// What has been read and not been asked for.
    said: String,
}

/// A Linux guest, with a shell on the serial port.
pub(crate) fn config() -> VmConfig {
    VmConfig {
        kernel: Some(kernel("6.1").join("vmlinux")),
        initrd: Some(initramfs().into()),
        append: Some("quiet".into()),
        ..VmConfig::default()
    }
}

impl Guest {
    /// Starts it, and waits for its shell.
    pub(crate) fn boot(builder: VmBuilder) -> Self {
        let vm = builder.build().unwrap().start().unwrap();
        let mut console = vm.console().unwrap();
        console.set_read_timeout(Some(PATIENCE));
        let mut guest = Self {
            vm,
            console,
            said: String::new(),
        };
        guest.expect("guest ready: ");
        guest
    }

    /// Waits for a text; what was said before it.
    pub(crate) fn expect(&mut self, text: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            if let Some(at) = self.said.find(text) {
                let rest = self.said.split_off(at + text.len());
                let mut before = std::mem::replace(&mut self.said, rest);
                before.truncate(at);
                return before;
            }
            let count = self.console.read(&mut buffer);
            let count = count.unwrap_or_else(|err| panic!("{err}; no {text:?} in {}", self.said));
            assert!(count > 0, "the end without {text:?}: {}", self.said);
            self.said += &String::from_utf8_lossy(&buffer[..count]);
        }
    }

    /// Types a line.
    pub(crate) fn send(&mut self, line: &str) {
        self.console
            .write_all(format!("{line}\n").as_bytes())
            .unwrap();
    }

    /// Has the shell begin something; [`Self::answer`] waits for its end.
    pub(crate) fn begin(&mut self, question: &str) {
        self.send(&format!("{question}; echo answe''red $?"));
    }

    /// What the shell printed of what it was asked, which must have succeeded.
    pub(crate) fn answer(&mut self) -> String {
        let said = self.expect("answered ");
        let status = self.expect("\r\n");
        assert_eq!(status.trim(), "0", "{said}");
        said
    }

    /// Has the shell do something, and returns what it printed.
    pub(crate) fn ask(&mut self, question: &str) -> String {
        self.begin(question);
        self.answer()
    }

    /// Loads the drivers, and mounts the tools' disk.
    fn load_tools(&mut self) {
        self.ask(LOAD_VIRTIO);
        self.ask(LOAD_TOOLS);
    }

    /// Has it stand still for that long, in which nothing changes.
    fn pause_and_resume(&mut self, pause: Duration) {
        self.vm.pause().unwrap();
        let before = self.picture();
        thread::sleep(pause);
        assert_eq!(self.vm.state(), VmState::Paused);
        assert!(self.picture() == before, "a paused guest has changed");
        self.vm.resume().unwrap();
    }

    /// What a paused guest is: its registers, its devices' counters and a part of its memory.
    fn picture(&self) -> (String, Vec<u64>, Vec<u8>) {
        let registers = self.vm.vcpu_registers(0).unwrap();
        let metrics = self.vm.metrics();
        let counts = metrics.devices.values();
        let counts = counts.flat_map(|it| [it.requests, it.bytes_read, it.bytes_written]);
        let mut memory = vec![0; 8 << 20];
        let ram = self.vm.memory().unwrap();
        ram.read(64 << 20, &mut memory).unwrap();
        (registers.to_string(), counts.collect(), memory)
    }

    /// Waits until a device has moved so many bytes.
    fn wait_for_bytes(&self, device: &str, bytes: u64) {
        loop {
            let metrics = self.vm.metrics();
            let counts = &metrics.devices[device];
            if counts.bytes_read + counts.bytes_written >= bytes {
                return;
            }
            assert_eq!(self.vm.exit_reason(), None);
            thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn power_off(mut self) {
        self.send("poweroff -f");
        assert_eq!(self.vm.wait(), ExitReason::PowerOff);
    }
}

fn tools_disk() -> DiskConfig {
    DiskConfig {
        readonly: true,
        serial: Some("ampoule-tools".into()),
        id: Some("tools".into()),
        ..DiskConfig::new(tools())
    }
}

/// Paused while `fio` has requests under way on an io_uring; what it wrote before and after has its sums.
pub(crate) fn fio_goes_on_after_a_pause() {
    let folder = tempfile::tempdir().unwrap();
    let disk = DiskConfig {
        size: Some(MemorySize::mib(32)),
        engine: Some(DiskEngine::IoUring),
        queues: 2,
        ..DiskConfig::new(folder.path().join("disk.img"))
    };
    let config = VmConfig {
        disk: vec![disk, tools_disk()],
        cpus: 2,
        ..config()
    };
    let mut guest = Guest::boot(VmBuilder::new(config));
    guest.load_tools();
    guest.begin(
        "fio --name=paused --filename=/dev/vda --rw=randrw --bsrange=4k-64k --size=32M --io_size=48M --iodepth=16 --direct=1 \
         --ioengine=libaio --thread --verify=crc32c --do_verify=1 --verify_fatal=1",
    );
    for (megabytes, pause) in [(2, PAUSE), (8, PAUSE / 10)] {
        guest.wait_for_bytes("disk0", megabytes << 20);
        guest.pause_and_resume(pause);
    }
    let said = guest.answer();
    assert!(said.contains("err= 0"), "{said}");
    guest.power_off();
}

/// Paused while `iperf3` sends and while it receives: the connection lives, and all arrives.
pub(crate) fn iperf_goes_on_after_a_pause() {
    let config = VmConfig {
        disk: vec![tools_disk()],
        net: vec![NetConfig::tap("ampoule30")],
        cpus: 2,
        ..config()
    };
    let mut guest = Guest::boot(VmBuilder::new(config));
    host("ip addr add 10.83.30.1/24 dev ampoule30");
    host("ip link set ampoule30 up");
    guest.load_tools();
    guest.ask("ip addr add 10.83.30.2/24 dev eth0; ip link set lo up; ip link set eth0 up");
    let _server = Server::start("10.83.30.1", 5201);
    for (direction, pause) in [("", PAUSE), (" -R", PAUSE / 10)] {
        let moved = {
            let metrics = guest.vm.metrics();
            let counts = &metrics.devices["net0"];
            counts.bytes_read + counts.bytes_written
        };
        guest.begin(&format!("iperf3 -c 10.83.30.1 -n 16M{direction}"));
        guest.wait_for_bytes("net0", moved + (4 << 20));
        guest.pause_and_resume(pause);
        let said = guest.answer();
        let result = said.lines().rfind(|line| line.trim().ends_with("receiver"));
        let result = result.unwrap_or_else(|| panic!("{said}"));
        // The receiver has counted when the sender is done, with the last of it on its way.
        let mut words = result.split_whitespace();
        let sum = words.find_map(|word| word.parse::<f64>().ok().filter(|it| *it > 13.0));
        assert!(sum.is_some(), "{result}");
    }
    guest.power_off();
}

/// Wherever the kernel is in its boot; the twentieth time it reaches its shell.
pub(crate) fn twenty_resets_in_a_row() {
    let config = VmConfig {
        append: None,
        cpus: 2,
        ..config()
    };
    let vm = VmBuilder::new(config).build().unwrap().start().unwrap();
    let mut console = vm.console().unwrap();
    console.set_read_timeout(Some(PATIENCE));
    let mut guest = Guest {
        vm,
        console,
        said: String::new(),
    };
    for reset in 0..20 {
        guest.expect("Linux version");
        // Later and later in the boot: so many lines of it.
        for _ in 0..reset {
            guest.expect("\n");
        }
        if reset % 3 == 0 {
            guest.vm.pause().unwrap();
        }
        guest.vm.reset().unwrap();
    }
    guest.expect("guest ready: ");
    guest.power_off();
}

/// Answers every read with a number of its own.
struct Answers;

impl BusDevice for Answers {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0x2a);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

/// Linux has a device of the program's own where its ACPI entry says that it is.
pub(crate) fn a_device_of_the_programs_own_is_found_by_acpi() {
    let mmio = Placement::Mmio {
        base: None,
        size: 0x1000,
    };
    let port = Placement::Port {
        base: 0x920,
        len: 8,
    };
    let device = |name| {
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        OwnBusDevice::from(Arc::new(Answers))
            .interrupt(Arc::new(EventLine::new(event)))
            .acpi_device(name, "ACME0001")
    };
    let builder = VmBuilder::new(config())
        .bus_device("one", mmio, device("ONE_"))
        .bus_device("two", port, device("TWO_"));
    let mut guest = Guest::boot(builder);
    let said = guest.ask("cat /sys/bus/acpi/devices/ACME0001:0*/path");
    assert!(
        said.contains("\\_SB_.ONE_") && said.contains("\\_SB_.TWO_"),
        "{said}"
    );
    let said = guest.ask("grep ACME0001 /proc/iomem /proc/ioports");
    assert!(said.contains("d0000000-d0000fff"), "{said}");
    assert!(said.contains("0920-0927"), "{said}");
    let said = guest.ask("devmem 0xd0000000 32");
    assert!(said.contains("0x2A2A2A2A"), "{said}");
    guest.power_off();
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
    guest.ask(LOAD_VIRTIO);
    let vsock = guest.vm.vsock().unwrap();
    let refused = vsock.connect_timeout(51, PATIENCE).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

    guest.send("vsock_echo listen 52");
    guest.expect("vsock listens");
    let stream = vsock.connect_timeout(52, PATIENCE).unwrap();
    expect_echo(stream.into(), LEN);
    guest.expect("vsock echoed");

    let refused = "vsock_echo connect 1234 1 2>&1 | grep 'reset by peer'";
    guest.ask(refused);
    let listener = vsock.listen(1234).unwrap();
    guest.send(&format!("vsock_echo connect 1234 {LEN}"));
    let stream = listener.accept_timeout(PATIENCE).unwrap();
    assert_eq!(echo(&stream), LEN as u64);
    guest.expect("vsock transferred");
    drop(listener);
    guest.ask(refused);

    guest.send("vsock_echo listen 53");
    guest.expect("vsock listens");
    let mut stream = vsock.connect_timeout(53, PATIENCE).unwrap();
    guest.vm.stop();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(guest.vm.wait(), ExitReason::Stopped);
    let ended = vsock.connect(53).unwrap_err();
    assert_eq!(ended.kind(), std::io::ErrorKind::BrokenPipe);
}
