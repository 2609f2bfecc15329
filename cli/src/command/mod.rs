//! `ampoule run IMAGE -- CMD`: a command in a VM of its own, with its streams, signals and status here.
//!
//! The image and the initramfs are files before the VM is built, and nothing of that work is left in its process but pages that
//! nobody touches. Then the guest's init takes its job over a socket inside this process, and this thread carries the command's
//! streams until it ends. The guest's console is kept, and shown where something went wrong.

pub(crate) mod args;
mod copy;
mod flags;
mod job;
mod network;
mod overlay;
pub(crate) mod phases;
pub(crate) mod progress;
pub(crate) mod registry;
mod remote;
mod volume;

use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use ampoule_image::copy::{Copies, CopyInto};
use ampoule_image::initramfs;
use ampoule_image::job::{Job, Network, Root};
use ampoule_image::kernel::{Driver, Kernel};
use ampoule_image::overlay::Overlay;
use ampoule_image::protocol::{Failure as NotRun, WindowSize};
use ampoule_image::session::{self, End, Outcome, SessionError, Streams};
use ampoule_store::{Image, ImageConfig, Limits, Source, Store};
use ampoule_vmm::config::{ConsoleConfig, DiskConfig, VmConfig, VsockConfig};
use ampoule_vmm::{ConsoleStream, ExitReason, Timeline, VmBuilder, VmHandle};

use crate::EXIT_FAILURE;
use crate::args::RunConfig;
use crate::folders::with_caches;
use crate::records::Records;
use crate::report::{self, Failure};
use crate::run::{EXIT_CRASH, EXIT_TIMEOUT};
use crate::terminal::{self, RawMode};
use args::CommandArgs;
pub(crate) use flags::check;
use network::{publish, usual_network};
use progress::Bar;
use registry::{Meaning, Pulling};
use remote::Remotes;

/// The host's port that the init connects to.
pub(crate) const PORT: u32 = 1024;

/// The serial number of the disk that the image is.
const ROOT: &str = "ampoule-root";

/// How long a guest that went away before its command had ended may take to end.
const POWER_OFF: Duration = Duration::from_secs(5);

/// How much of the guest's console is shown where something went wrong.
const SHOWN_LINES: usize = 40;

/// Runs a command to its end; the exit status. The network is the configuration's, which may have none, where somebody has
/// chosen it.
pub(crate) fn run(
    arguments: &CommandArgs,
    config: RunConfig,
    timeline: Timeline,
    is_network_chosen: bool,
) -> Result<u8, Failure> {
    let records = Records::open(&config)?;
    let terminal = io::stdin().is_terminal();
    if arguments.tty && arguments.interactive && !terminal {
        return Err(
            Failure::new("standard input is no terminal, which --tty wants")
                .with_help("leave out --tty, or --interactive"),
        );
    }
    let Plan {
        vm,
        mut job,
        copies,
        held,
    } = Plan::new(arguments, config.vm, &timeline, is_network_chosen)?;
    if arguments.tty {
        let (columns, rows) = terminal::size().unwrap_or((80, 24));
        job.terminal = Some(WindowSize { rows, columns });
    }
    let running = Running::start(vm, timeline)?;
    let code = running.carry(&job, &copies, arguments)?;
    let vm = &running.vm;
    let end = match vm.wait() {
        ExitReason::Stopped if !running.remotes.was_stopped() => "the command has ended".into(),
        end => end.to_string(),
    };
    records.write(vm, &end, code)?;
    drop(held);
    Ok(code)
}

/// What a VM uses that goes, or may go, when nobody holds it.
pub(crate) struct Held {
    /// The image, which is not removed from the cache meanwhile.
    _image: Option<Image>,
    /// A disk for what the command writes. A temporary one is reached by a descriptor of it.
    _overlay: Option<Overlay>,
}

/// What is to be booted for a command, and what its guest is told.
pub(crate) struct Plan {
    pub(crate) vm: VmConfig,
    pub(crate) job: Job,
    pub(crate) copies: Copies,
    /// What has to be held as long as the VM runs.
    pub(crate) held: Held,
}

impl Plan {
    /// Makes what is needed and is not there: the image's file, the initramfs, a disk. The network is the configuration's, which may
    /// have none, where somebody has chosen it.
    pub(crate) fn new(
        arguments: &CommandArgs,
        mut vm: VmConfig,
        timeline: &Timeline,
        is_network_chosen: bool,
    ) -> Result<Self, Failure> {
        let mounts = volume::share(&arguments.volume, &mut vm)?;
        let root = volume::root(arguments, &mut vm)?;
        let copies = copy::copies(arguments)?;
        let image = match &arguments.image {
            Some(path) => Some(image(path, arguments)?),
            None => None,
        };
        timeline.host("image");
        if !is_network_chosen {
            vm.net = usual_network(arguments)?;
        }
        publish(&mut vm, arguments)?;
        let no_image = ImageConfig::default();
        let image_config = image.as_ref().map_or(&no_image, Image::config);
        let mut job = job::of(arguments, image_config).ok_or_else(|| match image {
            Some(_) => Failure::new("the image names no command")
                .with_help("say what to run: ampoule run IMAGE -- /bin/sh"),
            None => Failure::new("there is no command")
                .with_help("say what to run: ampoule run --file PROGRAM -- PROGRAM"),
        })?;
        if !vm.net.is_empty() {
            job.network = Network::Dhcp;
        }
        job.mounts = mounts;
        let mut overlay = None;
        match (&image, root) {
            (_, Some(root)) => job.root = root,
            (Some(image), None) => {
                job.root = Root::Disk {
                    serial: ROOT.into(),
                    file_system: image.file_system().name().into(),
                    overlay: Vec::new(),
                    read_only: arguments.read_only,
                };
                vm.disk.push(DiskConfig {
                    readonly: true,
                    serial: Some(ROOT.into()),
                    id: Some("root".into()),
                    ..DiskConfig::new(image.path())
                });
                if let Some(asked) = &arguments.overlay {
                    let (file, disk) = overlay::make(asked, image)?;
                    overlay = Some(file);
                    vm.disk.push(disk);
                    if let Root::Disk { overlay, .. } = &mut job.root {
                        *overlay = overlay::SERIAL.into();
                    }
                }
            }
            (None, None) => copy::set_path(&mut job.environment),
        }
        boot_files(&mut vm, &job.root)?;
        timeline.host("initramfs");
        vm.vsock = Some(VsockConfig {
            cid: 3,
            socket: None,
        });
        Ok(Self {
            vm,
            job,
            copies,
            held: Held {
                _image: image,
                _overlay: overlay,
            },
        })
    }
}

/// The image's file, made if need be.
fn image(image: &Path, arguments: &CommandArgs) -> Result<Image, Failure> {
    let failed = |err: ampoule_store::Error| Failure::from_error(&err, err.remedy());
    let path = match registry::meaning(image.as_os_str())? {
        Meaning::Path(path) => path,
        Meaning::Registry(reference) => {
            let pulling = Pulling {
                registry: &arguments.registry,
                max_image_size: arguments.max_image_size,
                quiet: arguments.quiet,
            };
            return registry::image(&reference, arguments.pull, &pulling)
                .map_err(|failure| registry::with_both_readings(failure, image.as_os_str()));
        }
    };
    let source = Source::open(path, arguments.image_name.as_deref()).map_err(failed)?;
    let store = Store::open_default().map_err(failed)?;
    let mut limits = Limits::default();
    if let Some(size) = arguments.max_image_size {
        limits.max_image_size = size.as_bytes();
    }
    let mut bar = Bar::new(arguments.quiet);
    let image = store.get(&source, limits, &mut |progress| bar.show(progress));
    bar.finish();
    image.map_err(failed)
}

/// The kernel, and the initramfs with the drivers for what the VM has.
fn boot_files(vm: &mut VmConfig, root: &Root) -> Result<(), Failure> {
    let kernel = Kernel::find(vm.kernel.as_deref())
        .map_err(|err| Failure::from_error(&err, err.remedy()))?;
    let mut needed = Driver::BASE.to_vec();
    if let Root::Disk {
        file_system,
        overlay,
        ..
    } = root
    {
        // What an image lacks of mount points lies over it, in one that nobody may write to, too.
        needed.extend([Driver::VirtioBlk, Driver::Overlay]);
        let name = String::from_utf8_lossy(file_system);
        needed.extend(Driver::of_file_system(&name));
        if !overlay.is_empty() && !needed.contains(&Driver::Ext4) {
            needed.push(Driver::Ext4);
        }
    }
    if matches!(root, Root::Shared { .. }) {
        needed.push(Driver::Overlay);
    }
    if !vm.fs.is_empty() {
        needed.push(Driver::Virtiofs);
    }
    if !vm.net.is_empty() {
        needed.extend([Driver::VirtioNet, Driver::Packet]);
    }
    let cache = ampoule_store::cache_folder();
    let cache = cache.map_err(|err| Failure::from_error(&err, err.remedy()))?;
    let cache = cache.join("initramfs");
    let modules = kernel
        .modules_of_cached(&cache, &needed, &[Driver::VirtioRng])
        .map_err(|err| Failure::from_error(&err, err.remedy()))?;
    let initramfs =
        initramfs::cached(&cache, &modules, &[]).map_err(|err| Failure::from_error(&err, None))?;
    vm.kernel = Some(kernel.image);
    vm.initrd = Some(initramfs);
    let own = format!("ampoule.port={PORT}");
    let words = vm.cmdline.take();
    // A kernel that panics ends the run: it is not to wait for somebody who reads it.
    let words = words.unwrap_or_else(|| "console=ttyS0 quiet panic=-1 reboot=t".into());
    vm.cmdline = Some(format!("{words} {own}"));
    Ok(())
}

/// A VM whose guest's init is to take a job.
struct Running {
    vm: VmHandle,
    console: Option<ConsoleStream>,
    remotes: Remotes,
}

impl Running {
    fn start(config: VmConfig, timeline: Timeline) -> Result<Self, Failure> {
        let failed = |err: ampoule_vmm::Error| Failure::from_error(&err, err.remedy());
        let (source, remotes) = remote::remotes().map_err(|source| {
            let what = "signal descriptor";
            failed(ampoule_vmm::Error::Host { what, source })
        })?;
        let shown = matches!(config.serial, Some(ConsoleConfig::Stdio));
        let config = VmConfig {
            // The standard streams are the command's.
            serial: config.serial.filter(|_| !shown),
            ..config
        };
        let builder = with_caches(VmBuilder::new(config)).timeline(timeline);
        let vm = builder.control_source(source).build().map_err(failed)?;
        for (console, path) in vm.ptys() {
            report::print_stderr(&format!("{console}: {}\n", path.display()));
        }
        remotes.block().map_err(|err| {
            Failure::new(format!("cannot block signals: {}", report::io_text(&err)))
        })?;
        let console = vm.handle().console();
        Ok(Self {
            vm: vm.start().map_err(failed)?,
            console,
            remotes,
        })
    }

    /// Has the guest run the job; the exit status.
    fn carry(&self, job: &Job, copies: &Copies, arguments: &CommandArgs) -> Result<u8, Failure> {
        let raw = match arguments.tty && arguments.interactive {
            true => RawMode::enter().map_err(|err| {
                Failure::new(format!(
                    "cannot set up the terminal: {}",
                    report::io_text(&err)
                ))
            })?,
            false => None,
        };
        let outcome = self.talk(job, copies);
        drop(raw);
        // The guest has written what is to be kept, and would only take its time to power off. One that was lost may have more to
        // say on its console.
        if outcome.is_ok() || self.vm.wait_timeout(POWER_OFF).is_none() {
            self.vm.stop();
        }
        let end = self.vm.wait();
        Ok(match outcome {
            Ok(outcome) => self.tell(&outcome, &arguments.file),
            Err(SessionError::Copy(err)) => {
                Failure::from_error(&err, None).print();
                EXIT_FAILURE
            }
            Err(lost) => self.tell_loss(&lost, &end),
        })
    }

    fn talk(&self, job: &Job, copies: &Copies) -> Result<Outcome, SessionError> {
        let sockets = self.vm.vsock().ok_or(SessionError::Lost)?;
        let listener = sockets.listen(PORT).map_err(SessionError::Connection)?;
        // Fails when the VM ends without it.
        let connection = listener.accept().map_err(|_| SessionError::Lost)?;
        let connected = Instant::now();
        let (input, output, error) = (io::stdin(), io::stdout(), io::stderr());
        let streams = Streams {
            input: Some(input.as_fd()),
            output: output.as_fd(),
            error: error.as_fd(),
        };
        let outcome =
            session::run_copying(connection, job, copies, streams, &self.remotes.commands)?;
        let timeline = self.vm.timeline();
        timeline.host("command-ended");
        if let Some(times) = &outcome.started {
            phases::mark(timeline, times, connected);
        }
        Ok(outcome)
    }

    /// Says what a person should know of a command that has ended; the exit status.
    fn tell(&self, outcome: &Outcome, files: &[CopyInto]) -> u8 {
        for notice in &outcome.notices {
            report::print_stderr(&format!("ampoule: {notice}\n"));
        }
        if let End::NotRun { reason, failure } = &outcome.end {
            Failure {
                message: reason.clone(),
                help: match failure {
                    NotRun::Setup => None,
                    NotRun::NotExecutable | NotRun::NotFound => copy::help_for_files(files),
                },
            }
            .print();
        }
        for reason in &outcome.not_copied {
            Failure::new(format!("cannot copy out of the guest: {reason}")).print();
        }
        match outcome.end.status() {
            0 if !outcome.not_copied.is_empty() => EXIT_FAILURE,
            status => status,
        }
    }

    /// The same of a guest that went away before its command had ended.
    fn tell_loss(&self, lost: &SessionError, end: &ExitReason) -> u8 {
        if self.remotes.was_stopped() {
            return 128 + 9;
        }
        if *end != ExitReason::Deadline {
            report::print_stderr(&self.last_lines());
        }
        let (message, code) = match end {
            ExitReason::Deadline => (end.to_string(), EXIT_TIMEOUT),
            end if end.is_guest_crash() => (end.to_string(), EXIT_CRASH),
            ExitReason::HostFailed { .. } => (end.to_string(), EXIT_FAILURE),
            _ => (report::chain(lost), EXIT_FAILURE),
        };
        Failure::new(message).print();
        code
    }

    /// The end of what the guest's kernel and init said.
    fn last_lines(&self) -> String {
        let mut bytes = Vec::new();
        if let Some(console) = &self.console {
            let mut console = console;
            // The VM has ended, so that this does, too.
            let _ = console.read_to_end(&mut bytes);
        }
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        let from = lines.len().saturating_sub(SHOWN_LINES);
        let mut shown = String::from("the last lines on the guest's console:\n");
        for line in &lines[from..] {
            shown += &format!("  {line}\n");
        }
        if lines.is_empty() {
            String::new()
        } else {
            shown
        }
    }
}
