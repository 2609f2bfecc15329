//! A virtio device of one's own: an entropy device that throws dice. `cargo run --example custom_device -- KERNEL INITRD`; a guest
//! that has the driver (virtio_rng) reads them with `head -c 20 /dev/hwrng`.

#![allow(clippy::print_stderr, reason = "it talks to a person")]

use std::collections::hash_map::RandomState;
use std::env;
use std::error::Error;
use std::hash::BuildHasher;

use ampoule_vmm::VmBuilder;
use ampoule_vmm::config::{ConsoleConfig, VmConfig};
use ampoule_vmm::devices::{
    ActivateError, ActivationContext, ActiveQueue, Chain, VirtioDevice, VirtioDeviceType,
    VirtioWorker, WorkerError,
};

/// What the driver sees of the device: its kind, and one queue of 64 requests.
struct Dice;

impl VirtioDevice for Dice {
    fn device_type(&self) -> VirtioDeviceType {
        VirtioDeviceType::RNG
    }

    fn device_features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[64]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(
        &mut self,
        mut context: ActivationContext,
    ) -> Result<Box<dyn VirtioWorker>, ActivateError> {
        let queue = context.queues.pop();
        Ok(Box::new(Thrower {
            queue: queue.ok_or(ActivateError::MissingQueue { index: 0 })?,
            chain: Chain::new(),
        }))
    }
}

/// What answers the driver's requests, on the VM's I/O thread.
struct Thrower {
    queue: ActiveQueue,
    chain: Chain,
}

impl VirtioWorker for Thrower {
    fn process_queue(&mut self, _index: u16) -> Result<(), WorkerError> {
        self.queue.serve(&mut self.chain, |request, memory| {
            let wanted = request.writable_len().min(64);
            let throw = |at| b'1' + (RandomState::new().hash_one(at) % 6) as u8;
            let throws: Vec<u8> = (0..wanted).map(throw).collect();
            Ok(request.write_start(memory, &throws) as u32)
        })
    }

    fn stop(self: Box<Self>) -> Vec<ActiveQueue> {
        vec![self.queue]
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let config = VmConfig {
        kernel: arguments.next().map(Into::into),
        initrd: arguments.next().map(Into::into),
        serial: Some(ConsoleConfig::Stdio),
        // The built-in entropy device would be in its way.
        rng: false,
        ..VmConfig::default()
    };
    let vm = VmBuilder::new(config).virtio_device("dice", Dice).build()?;
    let end = vm.run();
    eprintln!("{end}");
    Ok(())
}
