//! `ampoule test`: VMs as tests, from files.
//!
//! ```text
//!  files --format--> Scenario… --supervisor--> a worker process each --Event--> ScenarioResult… --report--> JUnit, TAP, JSON, HTML
//! ```
//! - `format` reads files: inheritance, matrix, checks. What passes it can be run. `scenario` is what it makes.
//! - `supervisor` runs scenarios, each attempt in a process of its own, which may be killed, hang, or crash: that is a result, too.
//! - `worker` is that process: it boots the VM through the library's test feature ([`ampoule_vmm::test`]) and goes through the steps.
//! - `report` writes what came of it, `live` says it meanwhile; `outcome` is the model in between.
//! - `bisect` chooses what to try next between a kernel that passes and one that fails.

pub(crate) mod args;
mod bisect;
mod live;
mod outcome;
mod report;
mod scenario;
mod supervisor;
pub(crate) mod worker;
