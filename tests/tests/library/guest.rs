//! Bare guests, as a program has them that embeds the library.

use std::io::Read;

use ampoule_tests::guests;
use ampoule_vmm::config::{MemorySize, VmConfig};
use ampoule_vmm::{ConsoleStream, VmBuilder, VmHandle};

/// What a guest prints, to be waited for.
pub(crate) struct Printed {
    stream: ConsoleStream,
    text: String,
}

impl Printed {
    pub(crate) fn of(vm: &VmHandle) -> Self {
        Self {
            stream: vm.console().unwrap(),
            text: String::new(),
        }
    }

    /// What has been waited for, and what came with it.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Waits until `text` has been printed `times` times.
    pub(crate) fn wait_for(&mut self, text: &str, times: usize) {
        let mut buffer = [0; 512];
        while self.text.matches(text).count() < times {
            let count = self.stream.read(&mut buffer).unwrap();
            assert!(count > 0, "no {text:?} in {:?}", self.text);
            self.text += &String::from_utf8_lossy(&buffer[..count]);
        }
    }
}

/// A VM of a bare guest.
pub(crate) fn config(guest: &str, cpus: u32) -> VmConfig {
    VmConfig {
        kernel: Some(guest.into()),
        memory: MemorySize::mib(32),
        cpus,
        ..VmConfig::default()
    }
}

/// Starts a guest that says `ready`, and waits until it has.
pub(crate) fn ready(guest: &str, cpus: u32) -> (VmHandle, Printed) {
    let builder = VmBuilder::new(config(guest, cpus));
    let vm = builder.build().unwrap().start().unwrap();
    let mut printed = Printed::of(&vm);
    printed.wait_for("ready", 1);
    (vm, printed)
}

/// What the counting guest has written to its memory, of a VM that is paused.
pub(crate) fn count(vm: &VmHandle) -> u32 {
    let mut bytes = [0; 4];
    let memory = vm.memory().unwrap();
    memory.read(guests::COUNT, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}
