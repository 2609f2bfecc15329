//! `ampoule`: boot Linux in a microVM from the command line.
//!
//! Strings become typed configuration here and nowhere else, and only here is anything printed, handled or exited. `run`
//! and `doctor` hold the commands; `report` is the one printer of errors.

#![cfg_attr(not(test), no_main)]

mod args;
#[cfg(feature = "image")]
mod boot_disk;
#[cfg(feature = "image")]
mod command;
mod config_file;
#[cfg(feature = "test")]
mod deferred;
mod disk_arg;
mod doctor;
#[cfg(not(test))]
mod entry;
mod folders;
mod footprint;
mod fs_arg;
#[cfg(feature = "image")]
mod images;
mod key_list;
mod limits;
mod limits_arg;
mod logger;
mod metrics;
mod net_arg;
mod paint;
mod records;
mod report;
mod run;
mod signals;
mod terminal;
#[cfg(feature = "test")]
mod test;
mod timeline;
mod usage;
mod vsock_arg;

// Nothing but the C library, as an archive (build.rs).
#[cfg(static_libc)]
#[link(name = "c", kind = "static", modifiers = "-bundle")]
unsafe extern "C" {}

use std::ffi::OsStr;

use ampoule_vmm::Timeline;
use clap::{CommandFactory, Parser};

use args::{Cli, Command};
use report::Failure;

/// `ampoule` itself or the host failed.
const EXIT_FAILURE: u8 = 125;

/// Does what the command line says; the result is the process's exit code.
#[cfg_attr(
    test,
    allow(dead_code, reason = "called by the entry, which tests do not have")
)]
fn dispatch(timeline: Timeline) -> Result<u8, Failure> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(err) => {
            let command = std::env::args_os().nth(1);
            return usage::finish(&err, command.as_deref().and_then(OsStr::to_str));
        }
    };
    let cannot_print =
        |err: std::io::Error| Failure::new(format!("cannot print: {}", report::io_text(&err)));
    match cli.command {
        Command::Run(args) => run::run(*args, timeline),
        #[cfg(feature = "image")]
        Command::Image(args) => images::run(args),
        #[cfg(feature = "test")]
        Command::Test(args) => test::run(args.0),
        #[cfg(feature = "test")]
        Command::Bisect(args) => test::bisect(args.0),
        Command::Doctor(args) => doctor::doctor(&args).map_err(cannot_print),
        #[cfg(feature = "test")]
        Command::TestWorker(args) => test::worker::run(&args.0, timeline),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ampoule", &mut script);
            print_bytes(&script).map_err(cannot_print)
        }
        Command::Man { command } => man_page(command.as_deref())
            .and_then(|page| print_bytes(&page))
            .map_err(cannot_print),
    }
}

/// The manual page of `ampoule`, or of one of its commands.
fn man_page(command: Option<&str>) -> std::io::Result<Vec<u8>> {
    let mut ampoule = Cli::command();
    ampoule.build();
    let page_of = command
        .and_then(|name| ampoule.find_subcommand(name))
        .unwrap_or(&ampoule);
    let source = concat!("ampoule ", env!("CARGO_PKG_VERSION"));
    let mut page = Vec::new();
    clap_mangen::Man::new(page_of.clone())
        .source(source)
        .render(&mut page)?;
    Ok(page)
}

fn print_bytes(bytes: &[u8]) -> std::io::Result<u8> {
    report::print_stdout(&String::from_utf8_lossy(bytes))?;
    Ok(0)
}
