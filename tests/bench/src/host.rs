//! The machine that figures were taken on: what stands beside them, because without it they say nothing.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What figures depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Host {
    /// `6.18.5`
    pub(crate) kernel: String,
    /// `hardware (kvm_amd)`, as `ampoule doctor` finds it.
    pub(crate) kvm: String,
    /// The processor, by its own name.
    pub(crate) processor: String,
    pub(crate) processors: usize,
    pub(crate) memory_mib: u64,
    /// `version 2`
    pub(crate) cgroups: String,
    /// The parameter of the module kvm: whether executable huge pages are split.
    pub(crate) nx_huge_pages: String,
    pub(crate) transparent_huge_pages: String,
    /// How many wanted a processor in the minute before; those measured run beside them.
    pub(crate) load: String,
}

impl Host {
    pub(crate) fn look(ampoule: &Path) -> Self {
        let doctor = doctor(ampoule);
        let processor = line_of("/proc/cpuinfo", "model name");
        let memory = line_of("/proc/meminfo", "MemTotal");
        let memory_kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
        Self {
            kernel: first_line("/proc/sys/kernel/osrelease"),
            kvm: doctor
                .as_ref()
                .map_or_else(unknown, |doctor| check(doctor, "back end")),
            processor,
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: memory_kib / 1024,
            cgroups: doctor
                .as_ref()
                .map_or_else(unknown, |doctor| check(doctor, "cgroup")),
            nx_huge_pages: first_line("/sys/module/kvm/parameters/nx_huge_pages"),
            transparent_huge_pages: chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
            load: first_line("/proc/loadavg")
                .split(' ')
                .next()
                .unwrap_or_default()
                .into(),
        }
    }

    /// Each thing and its name, for people.
    pub(crate) fn lines(&self) -> [(&'static str, String); 9] {
        [
            ("Linux", self.kernel.clone()),
            ("KVM", self.kvm.clone()),
            ("processor", self.processor.clone()),
            ("processors", self.processors.to_string()),
            ("memory", format!("{} MiB", self.memory_mib)),
            ("cgroups", self.cgroups.clone()),
            ("nx_huge_pages", self.nx_huge_pages.clone()),
            (
                "transparent huge pages",
                self.transparent_huge_pages.clone(),
            ),
            ("load before", self.load.clone()),
        ]
    }
}

fn unknown() -> String {
    "unknown".into()
}

/// It says where Linux guests do not run by its status: that is no failure here.
fn doctor(ampoule: &Path) -> Option<Value> {
    let output = Command::new(ampoule)
        .args(["doctor", "--json"])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

/// The detail of a check of the doctor's.
fn check(doctor: &Value, name: &str) -> String {
    let sections = doctor["sections"].as_array().into_iter().flatten();
    let mut checks =
        sections.flat_map(|section| section["checks"].as_array().into_iter().flatten());
    let found = checks.find(|check| check["name"] == name);
    found
        .and_then(|check| check["detail"].as_str())
        .map_or_else(unknown, Into::into)
}

fn first_line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().map_or_else(unknown, Into::into)
}

/// What stands behind the colon of a line.
fn line_of(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let found = lines.find(|(key, _)| key.trim() == name);
    found.map_or_else(unknown, |(_, value)| value.trim().into())
}

/// Of `always [madvise] never`, the one in brackets.
fn chosen(path: &str) -> String {
    let line = first_line(path);
    let inside = line
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or(line.clone(), |(chosen, _)| chosen.into())
}
