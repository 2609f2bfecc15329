//! A vCPU's state at power-on. Runs on the thread that builds the machine.

use kvm_bindings::{CpuId, Msrs};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;

use ampoule_arch::cpuid::{CpuidFeatures, CpuidTemplate};
use ampoule_arch::regs::{self, EntryPoint};
use ampoule_arch::{lapic, msr};

use crate::error::Error;
use crate::kvm::Kvm;

use super::{Vcpu, VcpuContext, VcpuError};

/// What all vCPUs of a machine have in common.
pub(crate) struct VcpuTemplate {
    cpuid: CpuidTemplate,
    msrs: Msrs,
}

impl VcpuTemplate {
    pub(crate) fn new(kvm: &Kvm, vcpus: u32) -> Result<Self, Error> {
        let supported = kvm.supported_cpuid()?;
        let features = CpuidFeatures {
            tsc_deadline: kvm.has_tsc_deadline(),
        };
        let cpuid =
            CpuidTemplate::new(supported.as_slice(), vcpus, features).map_err(VcpuError::Cpuid)?;
        let msrs = Msrs::from_entries(&msr::boot_msrs())
            .map_err(|err| Error::platform("model-specific registers")(FamError(err)))?;
        Ok(Self { cpuid, msrs })
    }

    /// Brings a new vCPU to its state at power-on; `entry` is the first vCPU's way into the guest.
    pub(crate) fn create(
        &self,
        fd: VcpuFd,
        index: u32,
        entry: Option<&EntryPoint>,
        context: VcpuContext,
    ) -> Result<Vcpu, Error> {
        let refused = |what: &'static str| {
            move |source: errno::Error| VcpuError::State {
                index,
                what,
                source: source.into(),
            }
        };
        let cpuid = CpuId::from_entries(&self.cpuid.for_vcpu(index))
            .map_err(|err| Error::platform("CPUID")(FamError(err)))?;
        fd.set_cpuid2(&cpuid).map_err(refused("CPUID"))?;

        let set = fd
            .set_msrs(&self.msrs)
            .map_err(refused("model-specific registers"))?;
        if let Some(entry) = self.msrs.as_slice().get(set) {
            return Err(VcpuError::Msr {
                index,
                msr: entry.index,
            }
            .into());
        }
        let mut lapic = fd.get_lapic().map_err(refused("local APIC"))?;
        lapic::set_lint(&mut lapic);
        fd.set_lapic(&lapic).map_err(refused("local APIC"))?;

        if let Some(entry) = entry {
            let sregs = fd.get_sregs().map_err(refused("segment registers"))?;
            fd.set_sregs(&regs::sregs(sregs, entry))
                .map_err(refused("segment registers"))?;
            fd.set_regs(&regs::regs(entry))
                .map_err(refused("registers"))?;
            fd.set_fpu(&regs::fpu())
                .map_err(refused("floating point registers"))?;
        }
        Ok(Vcpu::new(index, fd, context))
    }
}

/// A list for KVM that grew longer than KVM takes.
#[derive(Debug, thiserror::Error)]
#[error("a list for KVM is too long: {0:?}")]
struct FamError(vmm_sys_util::fam::Error);
