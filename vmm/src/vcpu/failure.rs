//! A vCPU that KVM could not go on with: what happened, where, and on which instruction.

use std::fmt;
use std::io;
use std::ptr::NonNull;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, kvm_run,
};
use vm_memory::{Bytes, GuestAddress};

use crate::kvm::software_module;

use super::Vcpu;

/// The longest instruction of the architecture, in bytes.
const MAX_INSTRUCTION: usize = 15;

/// Why KVM could not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureKind {
    /// KVM's instruction emulator met an instruction that it does not know (KVM_EXIT_INTERNAL_ERROR, suberror 1).
    Emulation {
        /// The instruction's bytes as KVM reports them; empty where it does not.
        bytes: Vec<u8>,
    },
    /// Another internal error of KVM.
    InternalError {
        /// KVM's number for it (KVM_INTERNAL_ERROR_*).
        suberror: u32,
        /// What KVM adds to it.
        data: Vec<u64>,
    },
    /// The processor refused the guest's state (KVM_EXIT_FAIL_ENTRY).
    EntryRefused {
        /// The processor's reason, of its own numbering.
        reason: u64,
    },
    /// KVM handed over something that no x86 guest of ours should cause.
    UnexpectedExit {
        /// The exit.
        name: String,
    },
    /// KVM_RUN itself failed.
    RunFailed {
        /// Its error number.
        errno: i32,
    },
}

impl FailureKind {
    /// Reads the details of the internal error that KVM_RUN has just returned with.
    pub(super) fn internal_error(shared: NonNull<kvm_run>) -> Self {
        // SAFETY: `shared` is the page of the vCPU whose KVM_RUN has just returned on this thread with
        // KVM_EXIT_INTERNAL_ERROR, so that `internal` is the union's live field. It and `emulation_failure` are plain
        // integers over the same bytes, any value of which is valid.
        let (internal, emulation) = unsafe {
            let exit = &(*shared.as_ptr()).__bindgen_anon_1;
            (exit.internal, exit.emulation_failure)
        };
        if internal.suberror != KVM_INTERNAL_ERROR_EMULATION {
            let count = (internal.ndata as usize).min(internal.data.len());
            let data = internal.data[..count].to_vec();
            return Self::InternalError {
                suberror: internal.suberror,
                data,
            };
        }
        let has_bytes = emulation.ndata >= 1
            && emulation.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)
                != 0;
        // SAFETY: the flag just checked says that the instruction's fields are filled in; they are plain bytes.
        let instruction = unsafe { emulation.__bindgen_anon_1.__bindgen_anon_1 };
        let size = match has_bytes {
            true => usize::from(instruction.insn_size).min(instruction.insn_bytes.len()),
            false => 0,
        };
        Self::Emulation {
            bytes: instruction.insn_bytes[..size].to_vec(),
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Emulation { .. } => f.write_str("KVM cannot emulate an instruction"),
            Self::InternalError { suberror, data } => {
                write!(f, "KVM reports internal error {suberror} with {data:x?}")
            }
            Self::EntryRefused { reason } => {
                write!(
                    f,
                    "the processor refused the guest's state (reason {reason:#x})"
                )
            }
            Self::UnexpectedExit { name } => write!(f, "KVM returned with {name}"),
            Self::RunFailed { errno } => {
                write!(
                    f,
                    "KVM_RUN failed: {}",
                    io::Error::from_raw_os_error(*errno)
                )
            }
        }
    }
}

/// The registers that tell where a vCPU was.
///
/// See [`VmHandle::vcpu_registers`](crate::VmHandle::vcpu_registers), and [`VcpuFailure`] of a vCPU that could not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the architecture's names")]
pub struct Registers {
    pub rip: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub cs: u16,
    pub ss: u16,
}

impl fmt::Display for Registers {
    /// Four lines, without a final line feed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rip,
            rflags,
            rsp,
            rbp,
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            cr0,
            cr2,
            cr3,
            cr4,
            ..
        } = self;
        writeln!(
            f,
            "rip {rip:016x}  rsp {rsp:016x}  rbp {rbp:016x}  rflags {rflags:08x}"
        )?;
        writeln!(
            f,
            "rax {rax:016x}  rbx {rbx:016x}  rcx {rcx:016x}  rdx {rdx:016x}"
        )?;
        writeln!(
            f,
            "rsi {rsi:016x}  rdi {rdi:016x}  cs {:04x}  ss {:04x}",
            self.cs, self.ss
        )?;
        write!(
            f,
            "cr0 {cr0:08x}  cr2 {cr2:016x}  cr3 {cr3:016x}  cr4 {cr4:08x}"
        )?;
        write!(f, "  efer {:04x}", self.efer)
    }
}

/// A vCPU that KVM could not go on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VcpuFailure {
    /// The vCPU's index.
    pub vcpu: u32,
    /// What KVM said.
    pub kind: FailureKind,
    /// Where the vCPU was; `None` where KVM would not tell.
    pub registers: Option<Registers>,
    /// The bytes at RIP, up to 15; empty where they could not be read.
    pub instruction: Vec<u8>,
    /// The module of the host's KVM where that is known to work without the processor's virtualisation.
    pub software_kvm: Option<&'static str>,
}

impl VcpuFailure {
    /// What a person can do about it.
    pub fn remedy(&self) -> Option<String> {
        let module = self.software_kvm?;
        Some(format!(
            "this host's KVM ({module}) works in software and lacks instructions that Linux needs; \
             `ampoule doctor` shows which. Use a host with VT-x or AMD-V"
        ))
    }
}

impl fmt::Display for VcpuFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {} cannot go on: {}", self.vcpu, self.kind)?;
        if let Some(registers) = &self.registers {
            write!(f, " at rip {:#x}", registers.rip)?;
        }
        if !self.instruction.is_empty() {
            f.write_str(" (instruction bytes")?;
            for byte in &self.instruction {
                write!(f, " {byte:02x}")?;
            }
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl Vcpu {
    /// Gathers what is known about a failure. On the vCPU's thread, after its last KVM_RUN.
    pub(super) fn failure(&self, kind: FailureKind) -> VcpuFailure {
        let registers = self.registers();
        let mut instruction = match &kind {
            FailureKind::Emulation { bytes } => bytes.clone(),
            _ => Vec::new(),
        };
        if instruction.is_empty() {
            instruction = registers
                .map(|regs| self.bytes_at_rip(&regs))
                .unwrap_or_default();
        }
        VcpuFailure {
            vcpu: self.index,
            kind,
            registers,
            instruction,
            software_kvm: software_module(),
        }
    }

    /// The vCPU's registers; `None` where KVM refuses them.
    pub(super) fn registers(&self) -> Option<Registers> {
        let regs = self.fd.get_regs().ok()?;
        let sregs = self.fd.get_sregs().ok()?;
        Some(Registers {
            rip: regs.rip,
            rflags: regs.rflags,
            rsp: regs.rsp,
            rbp: regs.rbp,
            rax: regs.rax,
            rbx: regs.rbx,
            rcx: regs.rcx,
            rdx: regs.rdx,
            rsi: regs.rsi,
            rdi: regs.rdi,
            r8: regs.r8,
            r9: regs.r9,
            r10: regs.r10,
            r11: regs.r11,
            r12: regs.r12,
            r13: regs.r13,
            r14: regs.r14,
            r15: regs.r15,
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            efer: sregs.efer,
            cs: sregs.cs.selector,
            ss: sregs.ss.selector,
        })
    }

    fn bytes_at_rip(&self, registers: &Registers) -> Vec<u8> {
        let Ok(translation) = self.fd.translate_gva(registers.rip) else {
            return Vec::new();
        };
        if translation.valid == 0 {
            return Vec::new();
        }
        // The next page may be elsewhere in guest memory, so that reading stops at the page's end.
        let rest_of_page = 4096 - (registers.rip % 4096) as usize;
        let mut bytes = [0; MAX_INSTRUCTION];
        let wanted = &mut bytes[..rest_of_page.min(MAX_INSTRUCTION)];
        let address = GuestAddress(translation.physical_address);
        match self.context.ram.read(wanted, address) {
            Ok(count) => bytes[..count].to_vec(),
            Err(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_where_and_which_instruction() {
        let failure = VcpuFailure {
            vcpu: 1,
            kind: FailureKind::Emulation { bytes: vec![0xcc] },
            registers: Some(Registers {
                rip: 0x10_0042,
                ..Registers::default()
            }),
            instruction: vec![0xcc, 0x90],
            software_kvm: Some("kvm_pvm"),
        };
        assert_eq!(
            failure.to_string(),
            "vCPU 1 cannot go on: KVM cannot emulate an instruction at rip 0x100042 \
             (instruction bytes cc 90)"
        );
        assert!(failure.remedy().unwrap().contains("ampoule doctor"));
    }
}
