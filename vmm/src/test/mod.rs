//! VMs as tests: boot one, wait for what it prints, type, run commands in it, and see how it ends (feature `test`).
//!
//! A [`TestVm`] records its guest's console from before the first instruction. Each wait has a deadline, and each failure says what a
//! person needs: what was waited for, what the guest was doing, and the end of its console. What a healthy guest never prints
//! ([`FORBIDDEN`]) fails the step at hand. `ampoule test` is made of this.
//!
//! ```no_run
//! use ampoule_vmm::config::VmConfig;
//! use ampoule_vmm::test::{TestError, TestVm};
//!
//! // A #[test] that returns this prints the whole story when it fails.
//! fn my_kernel_boots() -> Result<(), TestError> {
//!     let mut vm = TestVm::boot(VmConfig {
//!         kernel: Some("vmlinuz".into()),
//!         initrd: Some("initramfs.cpio".into()),
//!         ..VmConfig::default()
//!     })?;
//!     vm.expect("login:")?;
//!     vm.send_line("root")?;
//!     vm.expect("# ")?;
//!     assert_eq!(vm.run("uname -m")?.text(), "x86_64");
//!     vm.send_line("poweroff")?;
//!     vm.expect_power_off()
//! }
//! # drop(my_kernel_boots);
//! ```
//!
//! # Threads
//! One thread more for each VM, which carries its console into the record. A `TestVm` is used by one thread at a time.

mod error;
mod forbidden;
mod hang;
mod pattern;
mod shell;
mod symbols;
mod text_log;
mod vm;

pub use error::TestError;
pub use forbidden::FORBIDDEN;
pub use hang::{Hang, HangKind, VcpuLook};
pub use pattern::{Pattern, PatternError};
pub use shell::CommandOutput;
pub use symbols::Symbols;
pub use text_log::{Found, Missed, Place, TextLog};
pub use vm::{TestVm, TestVmBuilder};
