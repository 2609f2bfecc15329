//! The process of one attempt at a scenario: boots the VM, goes through the steps, and tells the supervisor by lines of JSON on its
//! standard output. What it does to itself, its death included, is a result of the scenario and of nothing else.

mod agent;
mod checks;
mod guest;
mod steps;
mod trouble;

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use ampoule_vmm::Timeline;
use clap::Args;
use log::LevelFilter;
use serde::{Deserialize, Serialize};

use super::outcome::{Attempt, StepResult};
use super::scenario::Scenario;
use crate::logger;
use crate::report::{self, Failure};

/// How often the supervisor hears that the process lives.
pub(crate) const BEAT: Duration = Duration::from_millis(500);

/// The command line of the process.
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    /// Where its files go
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// What the supervisor hears.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Event {
    /// The process lives. It wanted to say so that much earlier.
    Beat { late_ms: u64 },
    /// A step was begun.
    Step { index: usize, at_ms: u64 },
    /// A step has passed.
    Passed { index: usize, result: StepResult },
    /// The attempt is over.
    Ended(Box<Attempt>),
}

/// Tells the supervisor. One that is gone is no error: its death is this process's, too.
pub(super) struct Teller(Mutex<io::Stdout>);

impl Teller {
    pub(super) fn tell(&self, event: &Event) {
        let Ok(mut line) = serde_json::to_string(event) else {
            return;
        };
        line.push('\n');
        let mut output = self.0.lock().unwrap_or_else(|err| err.into_inner());
        let _ = output.write_all(line.as_bytes());
        let _ = output.flush();
    }
}

/// Makes the attempt; the exit code says only that it was told.
pub(crate) fn run(args: &WorkerArgs, timeline: Timeline) -> Result<u8, Failure> {
    let scenario = read_scenario()?;
    let log = args.folder.join("vmm.log");
    logger::install(LevelFilter::Info, Some(&log))?;
    let teller = Teller(Mutex::new(io::stdout()));
    thread::scope(|scope| {
        let (teller, folder) = (&teller, args.folder.as_path());
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || beat(teller, &stopped));
        let attempt = steps::attempt(&scenario, folder, timeline, teller);
        drop(stop);
        teller.tell(&Event::Ended(Box::new(attempt)));
    });
    Ok(0)
}

fn read_scenario() -> Result<Scenario, Failure> {
    let mut text = String::new();
    let read = io::stdin().read_to_string(&mut text);
    read.map_err(|err| {
        Failure::new(format!(
            "cannot read the scenario: {}",
            report::io_text(&err)
        ))
    })?;
    serde_json::from_str(&text).map_err(|err| Failure::new(format!("this is no scenario: {err}")))
}

fn beat(teller: &Teller, stopped: &std::sync::mpsc::Receiver<()>) {
    loop {
        let begun = Instant::now();
        match stopped.recv_timeout(BEAT) {
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
            _ => return,
        }
        let late = begun.elapsed().saturating_sub(BEAT);
        let late_ms = u64::try_from(late.as_millis()).unwrap_or(u64::MAX);
        teller.tell(&Event::Beat { late_ms });
    }
}

/// Writes a file of the results. What cannot be written is told in the log, and is no failure of the scenario.
fn keep(folder: &Path, name: &str, content: &[u8]) {
    if let Err(err) = fs::write(folder.join(name), content) {
        log::error!("cannot write {name}: {}", report::io_text(&err));
    }
}
