//! KVM: the device, who may open it, what it is made of, and whether it executes what Linux needs.

use ampoule_vmm::probe::{KvmKind, Outcome, ProbeError, ProbeReport, probe_kvm};

use super::Check;
use super::host::{Access, Host, Identity};

const DEVICE: &str = "/dev/kvm";

/// What is known of KVM.
pub(super) struct Findings {
    pub(super) checks: Vec<Check>,
    pub(super) probe: Option<ProbeReport>,
    /// Why Linux guests will not run; `None` where they will.
    pub(super) blocker: Option<String>,
}

pub(super) fn examine(host: &Host) -> Findings {
    let access = host.access(DEVICE);
    let mut checks = vec![device(host, &access)];
    checks.extend(membership(&host.identity(), host.group_of(DEVICE), |gid| {
        host.group_name(gid)
    }));
    let (probe, blocker) = match access {
        Access::Opens => match probe_kvm() {
            Ok(report) => {
                checks.extend(probed(&report));
                let blocker = blocker(&report);
                (Some(report), blocker)
            }
            Err(err) => {
                checks.push(probe_failed(&err));
                (None, Some(crate::report::chain(&err)))
            }
        },
        Access::Absent => (None, Some(format!("there is no {DEVICE}"))),
        Access::Denied { .. } => (None, Some(format!("this user may not open {DEVICE}"))),
        Access::Fails(reason) => (None, Some(format!("{DEVICE} does not open: {reason}"))),
    };
    checks.extend(module_parameters(host));
    Findings {
        checks,
        probe,
        blocker,
    }
}

fn device(host: &Host, access: &Access) -> Check {
    match access {
        Access::Opens => Check::ok(DEVICE, "opens for reading and writing"),
        Access::Absent => Check::missing(DEVICE, "not there").help(how_to_get_kvm(host)),
        Access::Denied {
            group,
            group_may: true,
        } => Check::missing(
            DEVICE,
            format!("permission denied: it is for the group {group}"),
        )
        .help(format!("sudo usermod -aG {group} $USER, then log in again")),
        Access::Denied {
            group_may: false, ..
        } => Check::missing(DEVICE, "permission denied: it is for its owner only").help(format!(
            "sudo chgrp kvm {DEVICE} && sudo chmod g+rw {DEVICE}"
        )),
        Access::Fails(reason) => Check::missing(DEVICE, reason.clone()).help(how_to_get_kvm(host)),
    }
}

/// The remedy depends on what the processor offers and on what is loaded.
fn how_to_get_kvm(host: &Host) -> String {
    let cpuinfo = host.read("/proc/cpuinfo").unwrap_or_default();
    let has = |flag: &str| cpuinfo.split_whitespace().any(|word| word == flag);
    let module = match (has("vmx"), has("svm")) {
        (true, _) => "kvm_intel",
        (_, true) => "kvm_amd",
        _ => {
            return "the processor offers neither VT-x nor AMD-V: switch it on in the firmware's \
                    set-up, or, where this is itself a VM, allow nested virtualisation on its host"
                .into();
        }
    };
    match host.exists(&format!("/sys/module/{module}")) {
        true => format!(
            "the module {module} is loaded and the device is missing: in a container, pass it in \
             (docker run --device {DEVICE})"
        ),
        false => format!("sudo modprobe {module}"),
    }
}

/// Whether this user is in the group that the device is for. Root needs no group.
fn membership(
    identity: &Identity,
    device_group: Option<u32>,
    name_of: impl Fn(u32) -> Option<String>,
) -> Option<Check> {
    let name = "group";
    let gid = device_group?;
    let group = name_of(gid).unwrap_or_else(|| gid.to_string());
    Some(if identity.uid == 0 {
        Check::ok(name, "root needs none")
    } else if identity.groups.contains(&gid) {
        Check::ok(name, format!("this user is in the group {group}"))
    } else {
        Check::warn(name, format!("this user is not in the group {group}"))
            .help(format!("sudo usermod -aG {group} $USER, then log in again"))
    })
}

fn probed(report: &ProbeReport) -> Vec<Check> {
    let ProbeReport {
        api_version,
        max_vcpus,
        kind,
        instructions,
    } = report;
    let mut checks = vec![
        Check::ok(
            "API",
            format!("version {api_version}, up to {max_vcpus} vCPUs a guest"),
        ),
        match kind {
            KvmKind::Hardware { .. } => Check::ok("back end", kind.to_string()),
            KvmKind::Software { .. } => {
                let check = Check::warn("back end", format!("{kind}: no VT-x or AMD-V is used"));
                match report.linux_capable() {
                    true => check,
                    false => check.help(
                        "guests need the processor's virtualisation: use a machine with VT-x or \
                         AMD-V, or a VM whose host allows nested virtualisation",
                    ),
                }
            }
        },
    ];
    let good: Vec<&str> = instructions
        .iter()
        .filter(|probe| probe.outcome == Outcome::Ok)
        .map(|probe| probe.name)
        .collect();
    if !good.is_empty() {
        checks.push(Check::ok("instructions", good.join(", ")));
    }
    checks.extend(report.failures().map(|probe| {
        let detail = format!("{}; Linux needs it for {}", probe.outcome, probe.purpose);
        Check::missing(probe.name, detail)
    }));
    checks
}

fn probe_failed(err: &ProbeError) -> Check {
    let check = Check::missing("probe guest", crate::report::chain(err));
    match err.remedy() {
        Some(help) => check.help(help),
        None => check,
    }
}

fn blocker(report: &ProbeReport) -> Option<String> {
    if report.linux_capable() {
        return None;
    }
    let failed: Vec<&str> = report.failures().map(|probe| probe.name).collect();
    Some(format!(
        "its KVM is {} and cannot execute {}",
        report.kind,
        failed.join(", ")
    ))
}

/// Settings of the kernel's modules that change what guests cost or may do.
fn module_parameters(host: &Host) -> Vec<Check> {
    let is_on = |value: &str| matches!(value, "Y" | "1");
    let nested = ["kvm_intel", "kvm_amd"].iter().find_map(|module| {
        let value = host.read(&format!("/sys/module/{module}/parameters/nested"))?;
        Some(match is_on(&value) {
            true => Check::ok("nesting", "guests may run KVM themselves"),
            false => Check::warn("nesting", "guests may not run KVM themselves").help(format!(
                "sudo modprobe -r {module} && sudo modprobe {module} nested=1"
            )),
        })
    });
    let nx_huge_pages = host.read("/sys/module/kvm/parameters/nx_huge_pages").and_then(|value| {
        // Off is what every host wants that is not threatened by the iTLB multihit erratum.
        is_on(&value).then(|| {
            Check::warn("nx_huge_pages", "on: huge pages with guest code are split (iTLB multihit)")
                .help(
                    "slower start-up of each guest; where guests are trusted: echo never | sudo tee \
                     /sys/module/kvm/parameters/nx_huge_pages",
                )
        })
    });
    nested.into_iter().chain(nx_huge_pages).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::host::tests::FakeRoot;
    use super::*;
    use ampoule_vmm::probe::InstructionProbe;

    fn report(kind: KvmKind, outcomes: &[(&'static str, Outcome)]) -> ProbeReport {
        let instructions = outcomes
            .iter()
            .map(|(name, outcome)| InstructionProbe {
                name,
                purpose: "testing",
                outcome: outcome.clone(),
            })
            .collect();
        ProbeReport {
            api_version: 12,
            max_vcpus: 8,
            kind,
            instructions,
        }
    }

    #[test]
    fn hardware_that_does_everything_blocks_nothing() {
        let kind = KvmKind::Hardware {
            extension: Some("AMD-V"),
        };
        let outcomes = [("int3", Outcome::Ok), ("xsave", Outcome::NotOffered)];
        let report = report(kind, &outcomes);
        assert_eq!(blocker(&report), None);
        assert!(
            probed(&report)
                .iter()
                .all(|check| check.status == Status::Ok)
        );
    }

    #[test]
    fn software_that_lacks_int3_says_so() {
        let kind = KvmKind::Software {
            module: Some("kvm_pvm"),
        };
        let lacks = Outcome::NotEmulated { bytes: vec![0xcc] };
        let report = report(kind, &[("long mode", Outcome::Ok), ("int3", lacks)]);
        let expected = "its KVM is software (kvm_pvm) and cannot execute int3";
        assert_eq!(blocker(&report).as_deref(), Some(expected));
        let checks = probed(&report);
        let int3 = checks.iter().find(|check| check.name == "int3").unwrap();
        assert_eq!(int3.status, Status::Missing);
        assert!(int3.detail.contains("cc"), "{}", int3.detail);
    }

    #[test]
    fn the_remedy_fits_the_processor_and_the_modules() {
        let cases = [
            ("none", "flags: fpu", false, "neither"),
            ("intel", "flags: fpu vmx", false, "sudo modprobe kvm_intel"),
            ("amd", "flags: fpu svm", false, "sudo modprobe kvm_amd"),
            ("container", "flags: svm", true, "--device /dev/kvm"),
        ];
        for (test, cpuinfo, loaded, expected) in cases {
            let mut files = vec![("/proc/cpuinfo", cpuinfo)];
            if loaded {
                files.push(("/sys/module/kvm_amd/x", ""));
            }
            let root = FakeRoot::new(&format!("kvm-{test}"), &files);
            let check = device(&root.host(), &Access::Absent);
            assert_eq!(check.status, Status::Missing);
            assert!(check.help.unwrap().contains(expected), "{test}");
        }
    }

    #[test]
    fn permission_names_the_group_and_the_command() {
        let root = FakeRoot::new("kvm-denied", &[("/proc/x", "")]);
        let access = Access::Denied {
            group: "kvm".into(),
            group_may: true,
        };
        let help = device(&root.host(), &access).help.unwrap();
        assert_eq!(help, "sudo usermod -aG kvm $USER, then log in again");
        let name_of = |_| Some("kvm".to_owned());
        let user = |groups: Vec<u32>| Identity { uid: 1000, groups };
        let status = |identity| membership(&identity, Some(104), name_of).unwrap().status;
        assert_eq!(status(user(vec![100])), Status::Warn);
        assert_eq!(status(user(vec![100, 104])), Status::Ok);
        assert_eq!(status(Identity::default()), Status::Ok, "root");
    }

    #[test]
    fn module_parameters_are_told_where_they_exist() {
        let root = FakeRoot::new(
            "kvm-parameters",
            &[
                ("/sys/module/kvm_intel/parameters/nested", "N\n"),
                ("/sys/module/kvm/parameters/nx_huge_pages", "Y\n"),
            ],
        );
        let statuses: Vec<_> = module_parameters(&root.host())
            .into_iter()
            .map(|check| check.status)
            .collect();
        assert_eq!(statuses, [Status::Warn, Status::Warn]);
        assert!(module_parameters(&FakeRoot::new("kvm-none", &[]).host()).is_empty());
    }
}
