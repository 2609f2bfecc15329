//! A VM under test, and its steps.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::error::TestError;
use super::forbidden::FORBIDDEN;
use super::hang::{self, Hang};
use super::pattern::{Forbidding, Pattern};
use super::shell::{CommandOutput, Shell, ShellError};
use super::symbols::Symbols;
use super::text_log::{Found, Missed, Place, TextLog};
use crate::builder::VmBuilder;
use crate::config::VmConfig;
use crate::console_stream::ConsoleStream;
use crate::exit::ExitReason;
use crate::fault::{BlockFaults, FaultyBlock, FaultyNet, NetFaults};
use crate::handle::VmHandle;
use crate::sync::lock;
use crate::threads::VmThread;

/// How long a step may take that was not given a time.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How many of the console's last lines a failure shows.
const SHOWN_LINES: usize = 40;

/// How long the console of a VM that is over may take to be recorded.
const DRAIN: Duration = Duration::from_secs(10);

/// How long a guest that printed what is forbidden may take to say the rest of it.
const TRACE: Duration = Duration::from_millis(300);

/// The most of it that is waited for.
const LONGEST_TRACE: Duration = Duration::from_secs(3);

type VcpuThreads = Arc<Mutex<BTreeMap<u32, i32>>>;
type Adjust = Box<dyn FnOnce(VmBuilder) -> VmBuilder>;

/// A VM under test: booted, recorded, and stopped when it is dropped.
///
/// A step waits for `timeout` at most, 60 s by default. The search for a text goes on from where the last one ended.
pub struct TestVm {
    vm: VmHandle,
    /// One that does not keep it alive.
    looker: VmHandle,
    console: TextLog,
    input: ConsoleStream,
    cursor: Place,
    timeout: Duration,
    threads: VcpuThreads,
    symbols: Symbols,
    disks: BTreeMap<String, BlockFaults>,
    nets: BTreeMap<String, NetFaults>,
    /// Commands so far.
    commands: u32,
    recorder: Option<JoinHandle<()>>,
}

/// What a VM under test is to be, besides its configuration.
///
/// ```no_run
/// use std::time::Duration;
/// use ampoule_vmm::config::{DiskConfig, VmConfig};
/// use ampoule_vmm::fault::{BlockEffect, BlockFault, BlockOp, When};
/// use ampoule_vmm::test::{TestError, TestVm};
///
/// # fn main() -> Result<(), TestError> {
/// let config = VmConfig { disk: vec![DiskConfig::new("root.ext4")], ..VmConfig::default() };
/// let mut vm = TestVm::builder(config).faulty_disk("disk0").timeout(Duration::from_secs(90)).boot()?;
/// vm.expect("login:")?;
/// let disk = vm.disk_faults("disk0").expect("it was asked for");
/// disk.set([BlockFault::new(BlockOp::Write, When::Every(1), BlockEffect::Fail(5))]);
/// vm.expect("I/O error, dev vda")?;
/// # Ok(())
/// # }
/// ```
pub struct TestVmBuilder {
    config: VmConfig,
    adjust: Vec<Adjust>,
    forbidden: Vec<Pattern>,
    allowed: Vec<Pattern>,
    timeout: Duration,
    console: TextLog,
    symbols: Option<Symbols>,
    disks: BTreeMap<String, BlockFaults>,
    nets: BTreeMap<String, NetFaults>,
}

impl TestVmBuilder {
    /// Changes how the VM is built: devices, hooks, caches. Its serial port and its threads' start are taken.
    pub fn with(mut self, adjust: impl FnOnce(VmBuilder) -> VmBuilder + 'static) -> Self {
        self.adjust.push(Box::new(adjust));
        self
    }

    /// Lines that may not be on the console, instead of [`FORBIDDEN`]; and of them, those that may.
    pub fn forbid(mut self, forbidden: Vec<Pattern>, allowed: Vec<Pattern>) -> Self {
        (self.forbidden, self.allowed) = (forbidden, allowed);
        self
    }

    /// How long a step may take.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Records the console in this text.
    pub fn record(mut self, console: TextLog) -> Self {
        self.console = console;
        self
    }

    /// Names of the kernel's addresses, instead of those that are found beside it.
    pub fn symbols(mut self, symbols: Symbols) -> Self {
        self.symbols = Some(symbols);
        self
    }

    /// A disk of the configuration gets faults on demand, [`TestVm::disk_faults`].
    pub fn faulty_disk(mut self, id: impl Into<String>) -> Self {
        self.disks.insert(id.into(), BlockFaults::default());
        self
    }

    /// A network of the configuration gets faults on demand, [`TestVm::net_faults`].
    pub fn faulty_net(mut self, id: impl Into<String>) -> Self {
        self.nets.insert(id.into(), NetFaults::default());
        self
    }

    /// Boots it.
    ///
    /// # Errors
    /// The VM cannot be built; the configuration leads its serial port elsewhere.
    pub fn boot(self) -> Result<TestVm, TestError> {
        let forbidding = Forbidding::new(&self.forbidden, &self.allowed)?;
        self.console.forbid(forbidding);
        let symbols = self.symbols.unwrap_or_else(|| {
            let kernel = self.config.kernel.as_deref();
            kernel.map(Symbols::of_kernel).unwrap_or_default()
        });
        let threads = VcpuThreads::default();
        let own_threads = threads.clone();
        let mut builder = VmBuilder::new(self.config).on_thread_start(move |thread| {
            if let VmThread::Vcpu { index } = thread {
                // SAFETY: the call takes nothing and cannot fail.
                let id = unsafe { libc::gettid() };
                lock(&own_threads).insert(index, id);
            }
            Ok(())
        });
        for (id, faults) in &self.disks {
            let faults = faults.clone();
            builder = builder.wrap_disk(id, move |disk| {
                Ok(Arc::new(FaultyBlock::new(disk, &faults)))
            });
        }
        for (id, faults) in &self.nets {
            let faults = faults.clone();
            builder = builder.wrap_net(id, move |net| Ok(Arc::new(FaultyNet::new(net, &faults)?)));
        }
        for adjust in self.adjust {
            builder = adjust(builder);
        }
        let vm = builder.build()?;
        let looker = vm.handle();
        let input = looker.console().ok_or_else(|| {
            TestError::Setup(
                "the serial port is the test's: leave `serial` out of the configuration".into(),
            )
        })?;
        let (record, from) = (self.console.clone(), input.clone());
        let recorder = thread::Builder::new().name("console".into());
        let recorder = recorder.spawn(move || record.carry(from));
        let recorder = recorder.map_err(|source| TestError::Host {
            what: "cannot start a thread",
            source,
        })?;
        Ok(TestVm {
            vm: vm.start()?,
            looker,
            console: self.console,
            input,
            cursor: 0,
            timeout: self.timeout,
            threads,
            symbols,
            disks: self.disks,
            nets: self.nets,
            commands: 0,
            recorder: Some(recorder),
        })
    }
}

impl TestVm {
    /// Boots a VM.
    ///
    /// # Errors
    /// As for [`TestVmBuilder::boot`].
    pub fn boot(config: VmConfig) -> Result<Self, TestError> {
        Self::builder(config).boot()
    }

    /// A VM that is to be more than its configuration says.
    pub fn builder(config: VmConfig) -> TestVmBuilder {
        TestVmBuilder {
            config,
            adjust: Vec::new(),
            forbidden: FORBIDDEN
                .iter()
                .filter_map(|(_, text)| Pattern::regex(text).ok())
                .collect(),
            allowed: Vec::new(),
            timeout: TIMEOUT,
            console: TextLog::default(),
            symbols: None,
            disks: BTreeMap::new(),
            nets: BTreeMap::new(),
        }
    }

    /// The VM itself: to pause and resume it, to press its buttons, for its sockets, counts and timeline.
    pub fn vm(&self) -> &VmHandle {
        &self.vm
    }

    /// What its console has shown, from the first byte on, without control sequences.
    pub fn console(&self) -> &TextLog {
        &self.console
    }

    /// How long the next steps may take, each.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Waits for a text on the console, behind the one that was found last.
    ///
    /// # Errors
    /// It does not come in time; the VM ends; what is forbidden comes.
    pub fn expect(&mut self, pattern: impl Into<Pattern>) -> Result<Found, TestError> {
        let pattern = pattern.into();
        let found = self.console.find(&pattern, self.cursor, self.deadline());
        let found = found
            .map_err(|missed| self.explain(missed, format!("{pattern} was not on the console")))?;
        self.cursor = found.end;
        Ok(found)
    }

    /// Types on the console.
    ///
    /// # Errors
    /// The VM has ended.
    pub fn send(&mut self, text: &str) -> Result<(), TestError> {
        let sent = self.input.write_all(text.as_bytes());
        sent.map_err(|_| self.ended(format!("{text:?} could not be typed")))
    }

    /// Types a line.
    ///
    /// # Errors
    /// As for [`Self::send`].
    pub fn send_line(&mut self, line: &str) -> Result<(), TestError> {
        self.send(&format!("{line}\n"))
    }

    /// Types, and waits until the guest has shown what was typed, but for the ends of lines.
    ///
    /// # Errors
    /// As for [`Self::send`] and [`Self::expect`].
    pub fn send_and_see(&mut self, text: &str) -> Result<(), TestError> {
        self.send(text)?;
        for line in text.split(['\n', '\r']).filter(|line| !line.is_empty()) {
            self.expect(line)?;
        }
        Ok(())
    }

    /// Runs a line by the shell that is at its prompt on the console, in a subshell. It needs `base64` and `wc`, as busybox has them; its
    /// standard input is empty.
    ///
    /// # Errors
    /// No shell answers in time; the VM ends; what is forbidden comes. A status other than 0 is no error.
    pub fn run(&mut self, line: &str) -> Result<CommandOutput, TestError> {
        let what = format!("`{line}` did not end");
        self.talk(what, |shell| shell.run(line))
    }

    /// Reads a file of the guest's, by the shell on the console.
    ///
    /// # Errors
    /// As for [`Self::run`]; there is no such file.
    pub fn read_file(&mut self, path: &str) -> Result<Vec<u8>, TestError> {
        let what = format!("{path} was not read");
        self.talk(what, |shell| shell.read(path))
    }

    /// Writes a file of the guest's, by the shell on the console.
    ///
    /// # Errors
    /// As for [`Self::run`]; it cannot be written.
    pub fn write_file(&mut self, path: &str, content: &[u8]) -> Result<(), TestError> {
        let what = format!("{path} was not written");
        self.talk(what, |shell| shell.write(path, content))
    }

    fn talk<T>(
        &mut self,
        what: String,
        with: impl FnOnce(&mut Shell<'_>) -> Result<T, ShellError>,
    ) -> Result<T, TestError> {
        self.commands += 1;
        let mut input = self.input.clone();
        let mut shell = Shell {
            log: &self.console,
            cursor: &mut self.cursor,
            send: &mut |bytes| input.write_all(bytes),
            number: self.commands,
            deadline: Instant::now() + self.timeout,
        };
        with(&mut shell).map_err(|err| match err {
            ShellError::Missed(missed) => self.explain(missed, what),
            ShellError::Nobody(missed) => self.explain(
                missed,
                "no shell answered on the console (its prompt is to be there by then)".into(),
            ),
            ShellError::Cannot(why) => TestError::Shell {
                why,
                console: self.last_lines(),
            },
            ShellError::Console => self.ended(what),
        })
    }

    /// Waits for the VM's end, and for the end of its console.
    ///
    /// # Errors
    /// It does not end in time; what is forbidden came, unless it ended by a crash: that is the reason then.
    pub fn wait_exit(&mut self) -> Result<ExitReason, TestError> {
        let Some(reason) = self.vm.wait_timeout(self.timeout) else {
            return Err(match self.console.forbidden() {
                Some(found) => self.forbidden_error(found),
                None => self.deadline_error("the VM did not end".into()),
            });
        };
        self.console.wait_for_end(Instant::now() + DRAIN);
        if !reason.is_guest_crash() {
            self.check_forbidden()?;
        }
        Ok(reason)
    }

    /// Waits until the guest has powered off.
    ///
    /// # Errors
    /// As for [`Self::wait_exit`]; it ends in another way.
    pub fn expect_power_off(&mut self) -> Result<(), TestError> {
        match self.wait_exit()? {
            ExitReason::PowerOff => Ok(()),
            reason => Err(TestError::Ended {
                what: "the guest did not power off".into(),
                reason: Box::new(reason),
                console: self.last_lines(),
            }),
        }
    }

    /// Whether nothing forbidden has been printed so far.
    ///
    /// # Errors
    /// It has.
    pub fn check_forbidden(&self) -> Result<(), TestError> {
        match self.console.forbidden() {
            Some(found) => Err(self.forbidden_error(found)),
            None => Ok(()),
        }
    }

    /// Ends the test: lets the guest finish what it is printing, stops the VM if it still runs, and looks at all that it printed.
    ///
    /// # Errors
    /// What is forbidden was printed; the guest crashed.
    pub fn finish(&mut self) -> Result<ExitReason, TestError> {
        if self.vm.exit_reason().is_none() {
            self.console.settle(TRACE, LONGEST_TRACE);
            self.vm.stop();
        }
        let reason = self.vm.wait();
        self.console.wait_for_end(Instant::now() + DRAIN);
        if reason.is_guest_crash() {
            return Err(self.ended("the guest did not stay well".into()));
        }
        self.check_forbidden()?;
        Ok(reason)
    }

    /// What the VM is doing at the moment; it takes half a second, and pauses the VM some times.
    pub fn look(&self) -> Hang {
        let threads = lock(&self.threads).clone();
        hang::look(&self.looker, &threads, &self.symbols)
    }

    /// The faults of a disk that was asked to have some.
    pub fn disk_faults(&self, id: &str) -> Option<&BlockFaults> {
        self.disks.get(id)
    }

    /// The faults of a network that was asked to have some.
    pub fn net_faults(&self, id: &str) -> Option<&NetFaults> {
        self.nets.get(id)
    }

    /// The end of the console.
    pub fn last_lines(&self) -> Vec<String> {
        self.console.last_lines(SHOWN_LINES)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// The error of a step that waited in vain for what `what` says is not there.
    pub fn explain(&self, missed: Missed, what: String) -> TestError {
        match missed {
            Missed::Deadline => self.deadline_error(what),
            Missed::Ended => self.ended(what),
            Missed::Forbidden(found) => self.forbidden_error(found),
        }
    }

    fn deadline_error(&self, what: String) -> TestError {
        let hang = Box::new(self.look());
        TestError::Deadline {
            what,
            hang,
            console: self.last_lines(),
        }
    }

    fn ended(&self, what: String) -> TestError {
        // The console ends with the VM, or a moment before it.
        let reason = self.vm.wait_timeout(DRAIN);
        self.console.wait_for_end(Instant::now() + DRAIN);
        match reason {
            Some(reason) => TestError::Ended {
                what,
                reason: Box::new(reason),
                console: self.last_lines(),
            },
            None => self.deadline_error(what),
        }
    }

    /// A forbidden line is the first of several, and a panic's is followed by the VM's end, which says it better.
    fn forbidden_error(&self, found: Found) -> TestError {
        self.console.settle(TRACE, LONGEST_TRACE);
        match self.vm.wait_timeout(Duration::ZERO) {
            Some(reason) if reason.is_guest_crash() => self.ended("the guest crashed".into()),
            _ if found.text.contains("Kernel panic") => {
                // Its end is at hand: the VM waits for the rest of the text.
                match self.vm.wait_timeout(DRAIN) {
                    Some(_) => self.ended("the guest crashed".into()),
                    None => self.forbidden_line(found),
                }
            }
            _ => self.forbidden_line(found),
        }
    }

    fn forbidden_line(&self, found: Found) -> TestError {
        TestError::Forbidden {
            found,
            console: self.last_lines(),
        }
    }
}

impl Drop for TestVm {
    fn drop(&mut self) {
        self.vm.stop();
        self.vm.wait();
        if let Some(recorder) = self.recorder.take() {
            // It ends with the console, which has.
            let _ = recorder.join();
        }
    }
}

impl fmt::Debug for TestVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestVm")
            .field("state", &self.vm.state())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for TestVmBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestVmBuilder")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
