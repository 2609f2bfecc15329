//! Why an attempt fails: the kind, the words, and what a person needs who was not there.

use std::fmt::Write as _;

use ampoule_vmm::ExitReason;
use ampoule_vmm::test::{HangKind, TestError, TestVm};

use super::super::outcome::FailureKind;
use crate::report::Failure;

/// Why an attempt fails.
pub(super) struct Trouble {
    pub(super) kind: FailureKind,
    pub(super) message: String,
    pub(super) details: Vec<String>,
    pub(super) console: Vec<String>,
    pub(super) registers: String,
}

impl Trouble {
    pub(super) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            details: Vec::new(),
            console: Vec::new(),
            registers: String::new(),
        }
    }

    /// The host lacks something.
    pub(super) fn host(failure: &Failure) -> Self {
        let mut trouble = Self::new(FailureKind::Host, failure.message.clone());
        trouble
            .details
            .extend(failure.help.iter().map(|help| format!("help: {help}")));
        trouble
    }

    pub(super) fn with_console(mut self, vm: &TestVm) -> Self {
        self.console = vm.last_lines();
        self
    }

    /// What the library says of a step that failed.
    pub(super) fn of_test(err: TestError) -> Self {
        let kind = match &err {
            TestError::Deadline { hang, .. } => match hang.kind {
                HangKind::Idle => FailureKind::HangIdle,
                HangKind::Spinning => FailureKind::HangSpinning,
                HangKind::VmmStuck => FailureKind::VmmStuck,
                HangKind::HostStarved => FailureKind::HostStarved,
                _ => FailureKind::Deadline,
            },
            TestError::Ended { reason, .. } => match &**reason {
                ExitReason::Panic(_) => FailureKind::Panic,
                ExitReason::HostFailed { .. } => FailureKind::Host,
                reason if reason.is_guest_crash() => FailureKind::Crash,
                _ => FailureKind::UnexpectedEnd,
            },
            TestError::Forbidden { .. } => FailureKind::Forbidden,
            TestError::Shell { .. } => FailureKind::Mismatch,
            _ => FailureKind::Scenario,
        };
        let mut trouble = Self::new(kind, err.to_string());
        trouble.console = err.console().to_vec();
        match &err {
            TestError::Deadline { hang, .. } => {
                for vcpu in &hang.vcpus {
                    trouble.details.push(format!(
                        "vCPU {}: ran {:.0} % of the time, waited for a CPU {:.0} %; seen at {}",
                        vcpu.index,
                        vcpu.busy * 100.0,
                        vcpu.waited * 100.0,
                        match vcpu.distinct_places().is_empty() {
                            true => "no place".into(),
                            false => vcpu.distinct_places().join(", "),
                        }
                    ));
                    if let Some(registers) = &vcpu.registers {
                        let _ = writeln!(trouble.registers, "vCPU {}:\n{registers}", vcpu.index);
                    }
                }
            }
            TestError::Ended { reason, .. } => {
                if let ExitReason::VcpuFailed(failure) = &**reason {
                    if let Some(registers) = &failure.registers {
                        let _ = writeln!(trouble.registers, "{registers}");
                        trouble
                            .details
                            .extend(registers.to_string().lines().map(String::from));
                    }
                    trouble
                        .details
                        .extend(failure.remedy().map(|help| format!("help: {help}")));
                }
            }
            _ => {}
        }
        trouble
    }

    pub(super) fn mismatch(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Mismatch, message)
    }
}

impl From<TestError> for Trouble {
    fn from(err: TestError) -> Self {
        Self::of_test(err)
    }
}
