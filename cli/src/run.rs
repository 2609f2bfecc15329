//! `ampoule run`: from flags and a file to a VM, and from its end to an exit code.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::sync::Arc;

use ampoule_vmm::config::{ConfigError, ConsoleConfig, VmConfig};
use ampoule_vmm::console::{ConsoleEnds, FdSink};
use ampoule_vmm::{ExitReason, GuestPanic, Timeline, Vm, VmBuilder};

use crate::args::{RunArgs, RunConfig};
use crate::metrics::MetricsSink;
use crate::records::Records;
use crate::report::{self, Failure};
use crate::signals::{FirstSignal, SignalSet, Signals, Wanted};
use crate::terminal::input::{self, QuitAsked};
use crate::terminal::{self, RawMode};
use crate::{EXIT_FAILURE, config_file, folders::with_caches, footprint::Trim, limits};
#[cfg(feature = "image")]
use crate::{boot_disk, command};

/// The guest ran for longer than `--timeout`.
pub(crate) const EXIT_TIMEOUT: u8 = 124;
/// The guest crashed.
pub(crate) const EXIT_CRASH: u8 = 134;

/// Runs a VM to its end, and returns the exit code.
pub(crate) fn run(args: RunArgs, timeline: Timeline) -> Result<u8, Failure> {
    let mut config = match &args.config {
        Some(path) => config_file::load(path)?,
        None => RunConfig::default(),
    };
    let print_config = args.print_config;
    #[cfg(feature = "image")]
    let (args, command) = {
        let mut args = args;
        let command = std::mem::take(&mut args.command);
        (args, command)
    };
    #[cfg(feature = "image")]
    let is_network_chosen = args.chooses_network() || !config.vm.net.is_empty();
    args.apply(&mut config);
    #[cfg(feature = "image")]
    command::check(&command, &config.vm)?;
    #[cfg(feature = "image")]
    if command.is_asked() && !print_config {
        return command::run(&command, config, timeline, is_network_chosen);
    }
    config.vm.serial = Some(serial(&config.vm));
    if print_config {
        #[cfg(feature = "image")]
        // What cannot be completed is a template, or for another host.
        let _ = boot_disk::complete(&mut config.vm);
        return print(config);
    }
    let records = Records::open(&config)?;
    #[cfg(feature = "image")]
    if boot_disk::complete(&mut config.vm)? {
        timeline.host("initramfs");
    }
    let prepared = Prepared::new(config.vm, timeline, records.metrics())?;
    let handle = prepared.vm.handle();
    let ending = prepared.run()?;
    let code = ending.tell();
    records.write(&handle, &ending.reason.to_string(), code)?;
    Ok(code)
}

/// Where the serial port leads: by default to the standard streams, unless the virtio console has them.
fn serial(config: &VmConfig) -> ConsoleConfig {
    match (&config.serial, &config.console) {
        (Some(serial), _) => serial.clone(),
        (None, Some(ConsoleConfig::Stdio)) => ConsoleConfig::Null,
        (None, _) => ConsoleConfig::Stdio,
    }
}

/// Prints the effective configuration. One without a kernel is a template, and as good as any.
fn print(mut config: RunConfig) -> Result<u8, Failure> {
    match config.vm.validate() {
        Ok(()) | Err(ConfigError::NoKernel) => {}
        Err(err) => return Err(Failure::from_error(&err, err.remedy())),
    }
    let vm = &mut config.vm;
    vm.cmdline = Some(vm.effective_cmdline().to_owned());
    report::print_stdout(&config_file::to_toml(&config)?)
        .map_err(|err| Failure::new(format!("cannot print: {}", report::io_text(&err))))?;
    Ok(0)
}

/// A VM that is built, and all that surrounds it here.
struct Prepared {
    vm: Vm,
    signals: SignalSet,
    first_signal: FirstSignal,
    quit: Option<QuitAsked>,
    /// What the guest prints appears on the same terminal as what we print.
    shares_terminal: bool,
}

impl Prepared {
    fn new(
        config: VmConfig,
        timeline: Timeline,
        metrics: Option<Arc<MetricsSink>>,
    ) -> Result<Self, Failure> {
        let host = |what: &'static str| {
            move |source: std::io::Error| {
                let err = ampoule_vmm::Error::Host { what, source };
                Failure::from_error(&err, err.remedy())
            }
        };
        let stdio_console = config.console == Some(ConsoleConfig::Stdio);
        let on_stdio = stdio_console || config.serial == Some(ConsoleConfig::Stdio);
        let interactive = on_stdio && std::io::stdin().is_terminal();
        let shares_terminal =
            on_stdio && std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        let many_streams = config.vsock.is_some();
        let wanted = Wanted {
            disks: !config.disk.is_empty(),
            terminal_size: stdio_console,
        };
        let (source, signals, first_signal) =
            Signals::new(config.grace.as_duration(), metrics, wanted)
                .map_err(host("signal descriptor"))?;
        let mut builder = with_caches(VmBuilder::new(config))
            .timeline(timeline)
            .control_source(source)
            .control_source(Trim::new().map_err(host("timer"))?);
        let mut quit = None;
        if interactive {
            let (keys, quit_key, asked) = input::keys().map_err(host("terminal's descriptors"))?;
            let output = std::io::stdout()
                .as_fd()
                .try_clone_to_owned()
                .and_then(FdSink::new)
                .map_err(host("terminal's descriptors"))?;
            let ends = ConsoleEnds {
                output: Box::new(output),
                input: Some(Box::new(keys)),
            };
            builder = match stdio_console {
                true => builder.console(ends, terminal::size()),
                false => builder.serial(ends),
            };
            builder = builder.control_source(quit_key);
            quit = Some(asked);
        }
        if many_streams {
            limits::raise_descriptors();
        }
        let vm = builder
            .build()
            .map_err(|err| Failure::from_error(&err, err.remedy()))?;
        for (console, path) in vm.ptys() {
            // They asked for it, and cannot know it otherwise.
            report::print_stderr(&format!("{console}: {}\n", path.display()));
        }
        Ok(Self {
            vm,
            signals,
            first_signal,
            quit,
            shares_terminal,
        })
    }

    /// From here on signals are the VM's, and the terminal is the guest's.
    fn run(self) -> Result<Ending, Failure> {
        self.signals.block().map_err(|err| {
            Failure::new(format!("cannot block signals: {}", report::io_text(&err)))
        })?;
        let raw = match self.quit {
            Some(_) => RawMode::enter().map_err(|err| {
                Failure::new(format!(
                    "cannot set up the terminal: {}",
                    report::io_text(&err)
                ))
            })?,
            None => None,
        };
        let reason = self.vm.run();
        drop(raw);
        Ok(Ending {
            reason,
            signal: self.first_signal.get(),
            quit: self.quit.is_some_and(|quit| quit.get()),
            shares_terminal: self.shares_terminal,
        })
    }
}

/// How a run came to its end, and what had been asked for before.
struct Ending {
    reason: ExitReason,
    signal: Option<i32>,
    quit: bool,
    shares_terminal: bool,
}

impl Ending {
    /// The exit code of the process.
    fn code(&self) -> u8 {
        match &self.reason {
            ExitReason::PowerOff | ExitReason::Reset => 0,
            reason if reason.is_guest_crash() => EXIT_CRASH,
            ExitReason::Deadline => EXIT_TIMEOUT,
            ExitReason::Stopped if self.quit => 0,
            ExitReason::Stopped => match self.signal {
                Some(signal) => u8::try_from(128 + signal).unwrap_or(EXIT_FAILURE),
                None => EXIT_FAILURE,
            },
            _ => EXIT_FAILURE,
        }
    }

    /// Says what a person should know of it, and returns the exit code. A good end needs no words.
    fn tell(&self) -> u8 {
        let code = self.code();
        match &self.reason {
            ExitReason::PowerOff | ExitReason::Reset => {}
            ExitReason::Stopped if self.quit || self.signal.is_some() => {}
            ExitReason::Panic(panic) => {
                if !self.shares_terminal {
                    report::print_stderr(&excerpt(panic));
                }
                Failure::new(self.reason.to_string()).print();
            }
            ExitReason::VcpuFailed(failure) => {
                let failed = Failure::new(self.reason.to_string());
                match failure.remedy() {
                    Some(help) => failed.with_help(help).print(),
                    None => failed.print(),
                }
                if let Some(registers) = &failure.registers {
                    report::print_stderr(&format!("{registers}\n"));
                }
            }
            ExitReason::Deadline => Failure::new(self.reason.to_string())
                .with_help("a longer --timeout gives it more time")
                .print(),
            reason => Failure::new(reason.to_string()).print(),
        }
        code
    }
}

/// The guest's last words, for those who have not seen them.
fn excerpt(panic: &GuestPanic) -> String {
    if panic.last_lines.is_empty() {
        return String::new();
    }
    let mut text = String::from("the last lines on the guest's console:\n");
    for line in &panic.last_lines {
        text += "  ";
        text += line;
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(reason: ExitReason, signal: Option<i32>, quit: bool) -> u8 {
        Ending {
            reason,
            signal,
            quit,
            shares_terminal: true,
        }
        .code()
    }

    #[test]
    fn exit_codes_are_those_of_the_manual() {
        assert_eq!(code(ExitReason::PowerOff, None, false), 0);
        assert_eq!(code(ExitReason::Reset, None, false), 0);
        assert_eq!(code(ExitReason::Deadline, None, false), 124);
        assert_eq!(
            code(
                ExitReason::HostFailed {
                    message: "x".into()
                },
                None,
                false
            ),
            125
        );
        assert_eq!(code(ExitReason::TripleFault { vcpu: 0 }, None, false), 134);
        assert_eq!(
            code(ExitReason::Panic(GuestPanic::default()), None, false),
            134
        );
    }

    #[test]
    fn a_signal_counts_only_where_it_had_to_stop_the_guest() {
        assert_eq!(code(ExitReason::Stopped, Some(libc::SIGTERM), false), 143);
        assert_eq!(code(ExitReason::Stopped, Some(libc::SIGINT), false), 130);
        assert_eq!(code(ExitReason::PowerOff, Some(libc::SIGTERM), false), 0);
        assert_eq!(code(ExitReason::Stopped, None, true), 0, "^A x");
    }

    #[test]
    fn the_serial_port_has_the_standard_streams_unless_another_has_them() {
        let mut config = VmConfig::default();
        assert_eq!(serial(&config), ConsoleConfig::Stdio);
        config.console = Some(ConsoleConfig::Stdio);
        assert_eq!(serial(&config), ConsoleConfig::Null);
        config.console = Some(ConsoleConfig::Pty);
        assert_eq!(serial(&config), ConsoleConfig::Stdio);
        config.serial = Some(ConsoleConfig::Pty);
        assert_eq!(serial(&config), ConsoleConfig::Pty);
    }

    #[test]
    fn an_excerpt_is_indented() {
        let panic = GuestPanic {
            line: None,
            last_lines: vec!["one".into(), "two".into()],
        };
        assert!(excerpt(&panic).ends_with(":\n  one\n  two\n"));
        assert_eq!(excerpt(&GuestPanic::default()), "");
    }
}
