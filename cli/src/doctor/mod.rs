//! `ampoule doctor`: what this host offers, and what to do about the rest.
//!
//! Each part of the host is looked at by one function that returns one or more [`Check`]s; nothing is changed. Only the
//! checks of KVM decide whether Linux guests will run, and with it the exit status.

mod host;
mod kernel;
mod kvm;
mod output;

use ampoule_vmm::probe::ProbeReport;
use serde::Serialize;

use crate::args::DoctorArgs;
use crate::paint::Paint;
use host::Host;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Status {
    /// There and usable.
    Ok,
    /// There, with a limit worth knowing.
    Warn,
    /// Not there, or not usable.
    Missing,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    /// What was looked at, a few words.
    name: &'static str,
    status: Status,
    /// What was found.
    detail: String,
    /// What a person can do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Ok,
            detail: detail.into(),
            help: None,
        }
    }

    fn warn(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Warn,
            detail: detail.into(),
            help: None,
        }
    }

    fn missing(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Missing,
            detail: detail.into(),
            help: None,
        }
    }

    fn help(self, help: impl Into<String>) -> Self {
        Self {
            help: Some(help.into()),
            ..self
        }
    }
}

/// Checks of one kind.
#[derive(Debug, Serialize)]
struct Section {
    title: &'static str,
    /// Whether Linux guests depend on it.
    #[serde(skip)]
    decides: bool,
    checks: Vec<Check>,
}

/// Everything that was found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    /// Whether Linux guests will run.
    linux_guests: bool,
    /// The same in words, with the reason.
    summary: String,
    sections: Vec<Section>,
    /// What the probe guests did; absent where KVM cannot be used at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    probe: Option<ProbeReport>,
}

/// Looks at the host, prints the report, and returns the exit code: 0 only where Linux guests will run.
pub(crate) fn doctor(args: &DoctorArgs) -> std::io::Result<u8> {
    let report = examine(&Host::new("/"));
    let text = match args.json {
        true => output::json(&report)?,
        false => output::text(&report, Paint::stdout()),
    };
    crate::report::print_stdout(&text)?;
    Ok(if report.linux_guests { 0 } else { 1 })
}

fn examine(host: &Host) -> Report {
    let kvm::Findings {
        checks,
        probe,
        blocker,
    } = kvm::examine(host);
    let summary = match &blocker {
        None => "Linux guests will run on this host.".to_owned(),
        Some(blocker) => format!("Linux guests will not run on this host: {blocker}."),
    };
    let sections = vec![
        Section {
            title: "KVM",
            decides: true,
            checks,
        },
        Section {
            title: "Memory",
            decides: false,
            checks: host::memory(host),
        },
        Section {
            title: "Devices",
            decides: false,
            checks: host::devices(host),
        },
        Section {
            title: "Kernel",
            decides: false,
            checks: kernel::examine(host),
        },
    ];
    Report {
        linux_guests: blocker.is_none(),
        summary,
        sections,
        probe,
    }
}
