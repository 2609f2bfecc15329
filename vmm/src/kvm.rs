//! The one place that talks to `/dev/kvm`: opening it, the VM's file descriptor, memory slots, interrupt lines.
//!
//! KVM is wrapped, not abstracted: [`Kvm`] is the system handle, [`VmFd`] one VM. Everything here runs on the thread that
//! builds the VM, before its vCPU threads exist; the descriptors live until the VM is dropped. Reference: the kernel's
//! Documentation/virt/kvm/api.rst.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, KVM_PMU_EVENT_DENY, KVMIO, kvm_pmu_event_filter,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, NoDatamatch, VcpuFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ref;

use ampoule_arch::layout;

use crate::host_cache::{self, HostKey};
use crate::limit;
use crate::memory::GuestRam;

const DEVICE: &str = "/dev/kvm";

/// How often a call that a signal interrupted is made again.
const EINTR_RETRIES: u32 = 16;

/// Why KVM could not be had, or what it refused.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is no KVM on this host.
    #[error("this host has no {DEVICE}")]
    NoDevice(#[source] io::Error),
    /// The device is there, and this user may not use it.
    #[error("{DEVICE} may not be opened for reading and writing by this user")]
    Permission(#[source] io::Error),
    /// The device is there, and does not open.
    #[error("cannot open {DEVICE}")]
    Open(#[source] io::Error),
    /// Another KVM than the one that has been stable since 2007.
    #[error("{DEVICE} speaks API version {found}, and only {KVM_API_VERSION} is known")]
    ApiVersion {
        /// The version it speaks.
        found: i32,
    },
    /// The host's KVM lacks something without which no VM of ours runs.
    #[error("the host's KVM lacks {name}")]
    Capability {
        /// The capability's name in KVM's API document.
        name: &'static str,
    },
    /// More vCPUs than this KVM makes.
    #[error("the host's KVM makes at most {max} vCPUs, not {asked}")]
    TooManyVcpus {
        /// What the configuration asks for.
        asked: u32,
        /// What the host offers.
        max: usize,
    },
    /// An ioctl failed.
    #[error("KVM refused to {what}")]
    Ioctl {
        /// What was wanted, as a verb phrase.
        what: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// A memory slot was refused.
    #[error("KVM refused {size:#x} bytes of guest memory at {start:#x}")]
    MemorySlot {
        /// Guest physical address of the slot.
        start: u64,
        /// Its size in bytes.
        size: u64,
        /// What KVM said.
        #[source]
        source: io::Error,
    },
}

impl KvmError {
    /// What a person can do about it.
    pub fn remedy(&self) -> Option<String> {
        if let Some(remedy) = limit::remedy(self) {
            return Some(remedy.into());
        }
        Some(
            match self {
                Self::NoDevice(_) => {
                    "enable virtualisation in the firmware, then load the module: modprobe kvm-intel \
                     (or kvm-amd); inside a VM, its host must allow nesting; `ampoule doctor` says more"
                }
                Self::Permission(_) => {
                    "join the group that owns it and log in again: sudo usermod -aG kvm $USER; \
                     `ampoule doctor` says more"
                }
                Self::Open(_) | Self::ApiVersion { .. } | Self::Capability { .. } => {
                    "`ampoule doctor` says what this host offers"
                }
                Self::TooManyVcpus { max, .. } => return Some(format!("use at most --cpus {max}")),
                Self::Ioctl { source, .. } | Self::MemorySlot { source, .. } => {
                    match source.raw_os_error() {
                        Some(libc::ENOMEM) => "the host is out of memory",
                        Some(libc::EBUSY) => {
                            "another hypervisor (VirtualBox, VMware) may hold the CPU's virtualisation"
                        }
                        _ => return None,
                    }
                }
            }
            .to_owned(),
        )
    }

    fn ioctl(what: &'static str) -> impl Fn(errno::Error) -> Self {
        move |source| Self::Ioctl {
            what,
            source: source.into(),
        }
    }
}

/// The system's KVM, open.
pub(crate) struct Kvm {
    fd: kvm_ioctls::Kvm,
    /// Where what it answers is kept from one process to the next.
    cache: Option<PathBuf>,
    supported: OnceLock<CpuId>,
}

impl Kvm {
    /// Opens `/dev/kvm` and checks that it is one this library can use.
    pub(crate) fn open(cache: Option<PathBuf>) -> Result<Self, KvmError> {
        let fd = kvm_ioctls::Kvm::new().map_err(|err| {
            let source = io::Error::from(err);
            match source.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => KvmError::NoDevice(source),
                Some(libc::EACCES | libc::EPERM) if Path::new(DEVICE).exists() => {
                    KvmError::Permission(source)
                }
                _ => KvmError::Open(source),
            }
        })?;
        let found = fd.get_api_version();
        if found != KVM_API_VERSION as i32 {
            return Err(KvmError::ApiVersion { found });
        }
        for (cap, name) in [
            (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
            (Cap::Irqfd, "KVM_CAP_IRQFD"),
            (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
            (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
        ] {
            if !fd.check_extension(cap) {
                return Err(KvmError::Capability { name });
            }
        }
        Ok(Self {
            fd,
            cache,
            supported: OnceLock::new(),
        })
    }

    /// What a guest's CPUID may say on this host.
    pub(crate) fn supported_cpuid(&self) -> Result<&CpuId, KvmError> {
        if let Some(known) = self.supported.get() {
            return Ok(known);
        }
        let cache = self.cache.as_deref();
        let cache = cache.and_then(|folder| Some((folder, self.host_key()?)));
        let kept = cache.as_ref().and_then(|(folder, key)| {
            let entries = host_cache::read(folder, key)?;
            CpuId::from_entries(&entries).ok()
        });
        let answer = match kept {
            Some(kept) => kept,
            None => {
                let asked = self.fd.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
                let asked = asked.map_err(KvmError::ioctl("tell the CPUID it supports"))?;
                if let Some((folder, key)) = &cache {
                    host_cache::write(folder, key, asked.as_slice());
                }
                asked
            }
        };
        Ok(self.supported.get_or_init(|| answer))
    }

    fn host_key(&self) -> Option<HostKey> {
        // SAFETY: the descriptor is open for as long as `self`, and is not closed here.
        let device = ManuallyDrop::new(unsafe { File::from_raw_fd(self.fd.as_raw_fd()) });
        HostKey::now(&device.metadata().ok()?)
    }

    /// Whether the in-kernel local APIC has the TSC deadline mode.
    pub(crate) fn has_tsc_deadline(&self) -> bool {
        self.fd.check_extension(Cap::TscDeadlineTimer)
    }

    /// Creates a VM with an in-kernel interrupt controller and the given RAM.
    ///
    /// Memory goes in first, before the interrupt controller and any vCPU: a slot added later makes KVM wait for a grace
    /// period of their readers, which costs milliseconds (docs/performance.md).
    pub(crate) fn create_vm(&self, ram: &GuestRam, vcpus: u32) -> Result<VmFd, KvmError> {
        let max = self.fd.get_max_vcpus();
        if vcpus as usize > max {
            return Err(KvmError::TooManyVcpus { asked: vcpus, max });
        }
        let fd = self.create_vm_fd()?;
        // Pages that KVM on VT-x keeps for real-mode emulation; they must lie in the hole. Harmless on AMD-V.
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(KvmError::ioctl("place its identity map"))?;
        fd.set_tss_address(layout::KVM_TSS_ADDRESS as usize)
            .map_err(KvmError::ioctl("place its task state segment"))?;
        let vm = VmFd { fd };
        vm.add_memory(ram)?;
        vm.fd
            .create_irq_chip()
            .map_err(KvmError::ioctl("create an interrupt controller"))?;
        Ok(vm)
    }

    fn create_vm_fd(&self) -> Result<kvm_ioctls::VmFd, KvmError> {
        // A pending signal makes KVM_CREATE_VM return EINTR (it waits for a CPU hotplug lock killably).
        for _ in 0..EINTR_RETRIES {
            match self.fd.create_vm() {
                Err(err) if err.errno() == libc::EINTR => continue,
                other => return other.map_err(KvmError::ioctl("create a VM")),
            }
        }
        Err(KvmError::Ioctl {
            what: "create a VM",
            source: io::Error::from_raw_os_error(libc::EINTR),
        })
    }
}

/// One VM's file descriptor.
pub(crate) struct VmFd {
    fd: kvm_ioctls::VmFd,
}

impl VmFd {
    fn add_memory(&self, ram: &GuestRam) -> Result<(), KvmError> {
        for (slot, region) in ram.iter().enumerate() {
            let (start, size) = (region.start_addr().raw_value(), region.len());
            let slot = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: start,
                memory_size: size,
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the range is a mapping of `memory_size` bytes that `region` owns, and the machine keeps the RAM
            // alive for as long as this descriptor (see `Machine`'s field order). The guest may write all of it at any
            // time; the host touches it only through vm-memory's volatile accesses.
            unsafe { self.fd.set_user_memory_region(slot) }.map_err(|err| {
                KvmError::MemorySlot {
                    start,
                    size,
                    source: err.into(),
                }
            })?;
        }
        Ok(())
    }

    /// Creates the vCPU with this index, which is its APIC id too.
    pub(crate) fn create_vcpu(&self, index: u32) -> Result<VcpuFd, KvmError> {
        self.fd
            .create_vcpu(u64::from(index))
            .map_err(KvmError::ioctl("create a vCPU"))
    }

    /// Turns the guest's 32-bit writes of `value` at `address`, or without one all its writes there, into a ring of `event`,
    /// without an exit to us.
    pub(crate) fn register_ioevent(
        &self,
        event: &EventFd,
        address: &IoEventAddress,
        value: Option<u32>,
    ) -> Result<(), KvmError> {
        match value {
            Some(value) => self.fd.register_ioevent(event, address, value),
            None => self.fd.register_ioevent(event, address, NoDatamatch),
        }
        .map_err(KvmError::ioctl("watch a notification register"))
    }

    /// Lets each write to `event` raise the interrupt line `gsi` for an instant (an edge).
    pub(crate) fn register_irqfd(&self, event: &EventFd, gsi: u32) -> Result<(), KvmError> {
        self.fd
            .register_irqfd(event, gsi)
            .map_err(KvmError::ioctl("connect an interrupt line"))
    }
}

impl Drop for VmFd {
    /// Makes KVM hurry with what it put off, which the destruction of the VM waits for.
    ///
    /// Since Linux 6.18, each thing that goes onto a VM's I/O bus (four of the interrupt controller, every ioeventfd) leaves an
    /// old table of the bus to be freed after a grace period at leisure: 8 to 16 ms at 250 Hz. A filter for events of the PMU is
    /// replaced after an expedited one, and that makes those hurry which have begun. Of the calls tried it costs least. A VM
    /// that lived longer has none left, and waits for 0.1 ms (docs/performance.md).
    fn drop(&mut self) {
        // Denies nothing, to vCPUs that do not run any more.
        let filter = kvm_pmu_event_filter {
            action: KVM_PMU_EVENT_DENY,
            ..Default::default()
        };
        // SAFETY: the descriptor is a VM's, and KVM reads no more than the filter, which says that no events follow it.
        let set = unsafe { ioctl_with_ref(&self.fd, request::KVM_SET_PMU_EVENT_FILTER(), &filter) };
        if set != 0 {
            log::debug!("the VM's end waits: {}", io::Error::last_os_error());
        }
    }
}

/// A call that kvm-ioctls lacks.
mod request {
    #![allow(missing_docs, reason = "the macro's function has no place for one")]
    use super::{KVMIO, kvm_pmu_event_filter};
    use vmm_sys_util::ioctl_iow_nr;

    ioctl_iow_nr!(KVM_SET_PMU_EVENT_FILTER, KVMIO, 0xb2, kvm_pmu_event_filter);
}

/// Software back ends of KVM, by the kernel module that brings them.
const SOFTWARE_MODULES: &[&str] = &["kvm_pvm"];

/// The module of a KVM that works without the processor's virtualisation; `None` on VT-x and AMD-V.
pub(crate) fn software_module() -> Option<&'static str> {
    let loaded = |module: &&&str| Path::new("/sys/module").join(module).exists();
    SOFTWARE_MODULES.iter().find(loaded).copied()
}
