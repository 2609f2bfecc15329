//! Devices of the program's own, on buses and behind virtio; their panics and their lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ampoule_tests::guests;
use ampoule_vmm::config::{KernelEntry, VmConfig};
use ampoule_vmm::devices::{
    ActivateError, ActivationContext, ActiveQueue, BusDevice, Chain, EventFd, EventLine,
    InterruptLine, VirtioDevice, VirtioDeviceType, VirtioWorker, WorkerError,
};
use ampoule_vmm::{Error, ExitReason, IoEvent, OwnBusDevice, OwnDeviceError, Placement};
use ampoule_vmm::{VmBuilder, VmEvent, VmHandle};

use crate::guest::{Printed, config};

fn guest(cmdline: &str) -> VmConfig {
    VmConfig {
        cmdline: Some(cmdline.into()),
        entry: KernelEntry::Linux64,
        rng: false,
        ..config(guests::OWN_DEVICES, 1)
    }
}

/// Answers with the complement of what was written last; zero at power-on.
#[derive(Default)]
struct Complement(AtomicU32);

impl BusDevice for Complement {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(!(self.0.load(Ordering::SeqCst) as u8));
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        self.0.store(data[0].into(), Ordering::SeqCst);
    }

    fn reset(&self) {
        self.0.store(0, Ordering::SeqCst);
    }
}

/// Panics when told to, interrupts when told to, and keeps what is written to 8.
struct Window {
    line: Arc<EventLine>,
    seen: AtomicU32,
}

impl BusDevice for Window {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.copy_from_slice(&0x1234_5678_u32.to_le_bytes()[..data.len()]);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match offset {
            4 => panic!("as the guest wants it"),
            8 => self.seen.store(data[0].into(), Ordering::SeqCst),
            _ => self.line.trigger().unwrap(),
        }
    }
}

pub(crate) fn devices_on_buses_interrupt_are_notified_and_may_panic() {
    let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let line = Arc::new(EventLine::new(event()));
    let rung = event();
    let window = Arc::new(Window {
        line: line.clone(),
        seen: AtomicU32::new(0),
    });
    let notified = IoEvent {
        offset: 8,
        value: Some(7),
        event: rung.try_clone().unwrap(),
    };
    let own = OwnBusDevice::from(window.clone())
        .interrupt(line)
        .io_events(vec![notified])
        .acpi_device("WIND", "ACME0001");
    let port = Placement::Port {
        base: 0x900,
        len: 4,
    };
    let mmio = Placement::Mmio {
        base: None,
        size: 0x1000,
    };
    let vm = VmBuilder::new(guest("what=b gsi=6"))
        .bus_device("complement", port, Arc::new(Complement::default()))
        .bus_device("window", mmio, own)
        .build()
        .unwrap();
    let events = vm.handle().events();
    let vm = vm.start().unwrap();
    let mut console = Printed::of(&vm);
    for machine in 1..=2 {
        console.wait_for("done\n", machine);
        assert_eq!(rung.read().unwrap(), 1);
        assert_eq!(window.seen.swap(0, Ordering::SeqCst), 8);
        if machine == 1 {
            vm.reset().unwrap();
        }
    }
    let said = "port 000000a5\nwindow 12345678\npending 00000000\npending 00000001\n\
                window ffffffff\nport 0000000f\ndone\n";
    assert_eq!(console.text(), said.repeat(2));
    assert_eq!(broken(&vm, events), ["window", "window"]);
}

/// What has needed a reset in the life of a VM, which ends now.
fn broken(vm: &VmHandle, events: ampoule_vmm::Events) -> Vec<String> {
    vm.stop();
    assert_eq!(vm.wait(), ExitReason::Stopped);
    let of = |event| match event {
        VmEvent::DeviceNeedsReset { device } => Some(device),
        _ => None,
    };
    events.filter_map(of).collect()
}

/// Says which machine's question it answers, the how manieth; its second answer is a panic.
struct Oracle {
    asked: Arc<AtomicU32>,
}

struct Answers {
    queue: ActiveQueue,
    chain: Chain,
    asked: Arc<AtomicU32>,
}

impl VirtioDevice for Oracle {
    fn device_type(&self) -> VirtioDeviceType {
        VirtioDeviceType::RNG
    }

    fn device_features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[16]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        panic!("as the guest wants it");
    }

    fn activate(
        &mut self,
        mut context: ActivationContext,
    ) -> Result<Box<dyn VirtioWorker>, ActivateError> {
        let queue = context.queues.pop();
        Ok(Box::new(Answers {
            queue: queue.ok_or(ActivateError::MissingQueue { index: 0 })?,
            chain: Chain::new(),
            asked: self.asked.clone(),
        }))
    }
}

impl VirtioWorker for Answers {
    fn process_queue(&mut self, _index: u16) -> Result<(), WorkerError> {
        let asked = &self.asked;
        self.queue.serve(&mut self.chain, |chain, memory| {
            let number = asked.fetch_add(1, Ordering::SeqCst) + 1;
            assert_ne!(number, 2, "as the test wants it");
            let answer = format!("answer {number}");
            Ok(chain.write_start(memory, answer.as_bytes()) as u32)
        })
    }

    fn stop(self: Box<Self>) -> Vec<ActiveQueue> {
        vec![self.queue]
    }
}

pub(crate) fn a_virtio_device_outlives_machines_and_its_own_panics() {
    let asked = Arc::<AtomicU32>::default();
    let device = Oracle {
        asked: asked.clone(),
    };
    let vm = VmBuilder::new(guest("what=v"))
        .virtio_device("oracle", device)
        .build()
        .unwrap();
    let events = vm.handle().events();
    let vm = vm.start().unwrap();
    let mut console = Printed::of(&vm);
    console.wait_for("done\n", 1);
    let said = "answer 1\nneeds reset\nanswer 3\nneeds reset\nanswer 4\ndone\n";
    assert_eq!(console.text(), said);
    assert_eq!(vm.metrics().devices["oracle"].requests, 3);
    // The second answer of the next machine is no panic.
    vm.reset().unwrap();
    console.wait_for("done\n", 2);
    let again = "answer 5\nanswer 6\nanswer 7\nneeds reset\nanswer 8\ndone\n";
    assert_eq!(console.text(), format!("{said}{again}"));
    assert_eq!(broken(&vm, events), ["oracle", "oracle", "oracle"]);
}

pub(crate) fn what_cannot_be_placed_is_an_error_with_the_devices_name() {
    let device = || Arc::new(Complement::default());
    let build = |placement| {
        VmBuilder::new(guest("what=b"))
            .bus_device("mine", placement, device())
            .build()
            .map(|_| ())
    };
    let mmio = |base, size| Placement::Mmio {
        base: Some(base),
        size,
    };
    let port = |base, len| Placement::Port { base, len };
    build(mmio(0xd800_0000, 0x10_0000)).unwrap();
    build(port(0xfffe, 2)).unwrap();
    for bad in [
        mmio(0x1000, 0x1000),
        mmio(0xfec0_0000, 0x1000),
        mmio(0xd000_0001, 0x1000),
        port(0xffff, 2),
        port(0x900, 0),
    ] {
        let error = build(bad).unwrap_err();
        let Error::OwnDevice { device, source } = error else {
            panic!("{error}");
        };
        assert_eq!(device, "mine");
        assert!(
            matches!(source, OwnDeviceError::Placement { .. }),
            "{source}"
        );
    }
    // That of the serial port.
    let error = build(port(0x3fc, 2)).unwrap_err();
    assert!(
        matches!(
            error,
            Error::OwnDevice {
                source: OwnDeviceError::Bus(_),
                ..
            }
        ),
        "{error}"
    );
    let twice = VmBuilder::new(config(guests::OWN_DEVICES, 1))
        .bus_device("rng", port(0x900, 1), device())
        .build();
    assert!(matches!(
        twice.map(|_| ()),
        Err(Error::OwnDevice {
            source: OwnDeviceError::Id,
            ..
        })
    ));
}
