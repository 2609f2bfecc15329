//! Runs tests, and says of those that cannot run here why.
//!
//! Rust's own harness knows tests that are ignored by their source. Whether a machine's KVM can run Linux is known only when
//! the tests run; so each test says what it needs, and what is not there makes it a skipped one, with its reason on a line
//! of its own: `skipped NAME: REASON`.

#![allow(
    clippy::print_stdout,
    reason = "a test program reports on standard output"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fs};

use libtest_mimic::{Arguments, Trial};
use tempfile::TempDir;

/// What a test needs of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// Debian's docker-registry, skopeo and umoci.
    Registry,
    /// A `/dev/kvm` that opens, of any kind.
    Kvm,
    /// A KVM that can run Linux, and Debian's kernels in the folder that [`KERNELS`] names.
    LinuxGuests,
    /// The same, root's rights, and the image that [`TOOLS`] names.
    Tools,
    /// The same, and the time that [`THOROUGH`] grants.
    Thorough,
    /// As for Linux guests, and the Debian system that [`DEBIAN`] names.
    Debian,
}

/// The environment variable that names the binary under test.
pub const BINARY: &str = "AMPOULE_BIN";

/// The environment variable that names the folder of Debian's kernels, as `cargo lab` unpacks them: `6.1/vmlinuz`,
/// `6.1/vmlinux`, `6.1/package/lib/modules/`, and the same for 6.12.
pub const KERNELS: &str = "AMPOULE_TEST_KERNELS";

/// The environment variable that names an image of programs for guests, as `cargo lab` makes it.
pub const TOOLS: &str = "AMPOULE_TEST_TOOLS";

/// The environment variable that names the folder of a Debian system, as `cargo lab` makes it: `debian.ext4`, and `debian-oci.tar`.
pub const DEBIAN: &str = "AMPOULE_TEST_DEBIAN";

/// The environment variable by which tests that take long are wanted, too.
pub const THOROUGH: &str = "AMPOULE_TEST_THOROUGH";

/// The folder of a kernel of Debian's, `6.1` or `6.12`.
///
/// # Panics
/// When nobody said where it is; tests that need it are skipped then.
pub fn kernel(version: &str) -> PathBuf {
    Path::new(&env::var_os(KERNELS).expect("no kernels")).join(version)
}

/// The environment variable that names a folder for what several runs of a test program share, made by whoever starts them. Without
/// it each run makes its own.
pub const SHARED: &str = "AMPOULE_TEST_SHARED";

/// The environment variable that names such a folder that is only read: another machine has made what is there.
pub const PREPARED: &str = "AMPOULE_TEST_PREPARED";

/// The environment variable by which a test program runs nothing, and makes what is good for other machines, too.
pub const PREPARE: &str = "AMPOULE_TEST_PREPARE";

/// A folder of this name that `make` has filled, once for all runs of the test programs that have [`SHARED`] in common: what is made
/// in an emulated machine takes its time.
///
/// # Panics
/// It cannot be made.
pub fn shared(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    static OWN: OnceLock<TempDir> = OnceLock::new();
    let whole = format!("{name}.whole");
    if let Some(prepared) = env::var_os(PREPARED).map(PathBuf::from)
        && prepared.join(&whole).exists()
    {
        return prepared.join(name);
    }
    let own = || OWN.get_or_init(|| tempfile::tempdir().expect("no temporary folder"));
    let all = env::var_os(SHARED).map_or_else(|| own().path().to_owned(), PathBuf::from);
    let folder = all.join(name);
    if !all.join(&whole).exists() {
        // Of one that failed in the middle.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("no shared folder");
        open_to_all(&all);
        open_to_all(&folder);
        make(&folder);
        fs::write(all.join(&whole), "").expect("the shared folder takes no file");
    }
    folder
}

/// Users without rights look into it, too.
fn open_to_all(folder: &Path) {
    let all = fs::Permissions::from_mode(0o755);
    fs::set_permissions(folder, all).expect("a folder of this user's");
}

/// The environment variable that names the program of docs/embedding.md, which `cargo lab test` builds.
pub const STRANGER: &str = "AMPOULE_TEST_STRANGER";

/// The program of an example of `ampoule-vmm`'s, where cargo has built it: beside this one.
///
/// # Panics
/// When it has not.
pub fn example(name: &str) -> PathBuf {
    let own = env::current_exe().expect("a program has a path");
    let folder = own
        .parent()
        .and_then(Path::parent)
        .expect("target/PROFILE/deps");
    let program = folder.join("examples").join(name);
    assert!(
        program.exists(),
        "{} is not there: cargo build --package ampoule-vmm --examples",
        program.display()
    );
    program
}

/// The image of programs for guests.
///
/// # Panics
/// As [`kernel`].
pub fn tools() -> PathBuf {
    env::var_os(TOOLS).expect("no tools").into()
}

/// The folder of the Debian system.
///
/// # Panics
/// As [`kernel`].
pub fn debian() -> PathBuf {
    env::var_os(DEBIAN).expect("no Debian system").into()
}

/// A test, by its name.
pub struct Test {
    /// Its name, by which it is chosen.
    pub name: &'static str,
    /// What it does; it panics to fail.
    pub run: fn(),
}

/// A list of [`Test`]s: each function by its module and itself.
#[macro_export]
macro_rules! tests {
    ($($module:ident: $($test:ident)*;)*) => {
        vec![$($($crate::harness::Test {
            name: concat!(stringify!($module), "::", stringify!($test)),
            run: $module::$test,
        },)*)*]
    };
}

/// Runs what the command line chooses of some tests, each list of which has the same needs.
pub fn main<const N: usize>(lists: [(Needs, Vec<Test>); N], ampoule: &Path) -> ExitCode {
    let arguments = Arguments::from_args();
    heed_signals();
    let chosen = |name: &str| {
        let matches = |filter: &String| match arguments.exact {
            true => name == filter,
            false => name.contains(filter.as_str()),
        };
        arguments.filter.as_ref().is_none_or(matches) && !arguments.skip.iter().any(matches)
    };
    let mut skipped = Vec::new();
    let mut trials = Vec::new();
    let times = Times::default();
    for (needs, tests) in lists {
        let missing = (!arguments.list).then(|| missing(needs, ampoule)).flatten();
        for Test { name, run } in tests {
            if let Some(reason) = missing.as_ref().filter(|_| chosen(name)) {
                skipped.push(format!("skipped {name}: {reason}"));
            }
            let times = times.clone();
            let trial = Trial::test(name, move || {
                let _timed = times.start(name);
                run();
                Ok(())
            });
            trials.push(trial.with_ignored_flag(missing.is_some()));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    for line in skipped {
        println!("{line}");
    }
    times.tell();
    conclusion.exit_code()
}

/// How long each test took, failed ones included. Told behind everything else: `took NAME: SECONDS s`.
#[derive(Clone, Default)]
struct Times(Arc<Mutex<Vec<(&'static str, Duration)>>>);

impl Times {
    /// Takes the time until what it returns is dropped.
    fn start(&self, name: &'static str) -> impl Drop {
        struct Timed(Times, &'static str, Instant);
        impl Drop for Timed {
            fn drop(&mut self) {
                let Self(Times(all), name, start) = self;
                let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                all.push((*name, start.elapsed()));
            }
        }
        Timed(self.clone(), name, Instant::now())
    }

    fn tell(&self) {
        for (name, took) in &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            println!("took {name}: {:.3} s", took.as_secs_f64());
        }
    }
}

/// A test finds out that it cannot run here: it counts as skipped once it has returned.
pub fn skip(name: &str, reason: &str) {
    println!("skipped {name}: {reason}");
}

/// Whether the tests have root's rights.
pub fn is_root() -> bool {
    // SAFETY: takes no pointer, and always succeeds.
    unsafe { libc::geteuid() == 0 }
}

/// What is started in the background ignores some signals, and so would the programs under test.
fn heed_signals() {
    for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: no other thread exists yet, and the default action needs no handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// What is missing of `needs` on this machine, in a few words.
fn missing(needs: Needs, ampoule: &Path) -> Option<String> {
    if needs == Needs::Nothing {
        return None;
    }
    if needs == Needs::Registry {
        let path = env::var_os("PATH").unwrap_or_default();
        let is_there = |name: &&str| env::split_paths(&path).any(|it| it.join(name).is_file());
        let programs = ["docker-registry", "skopeo", "umoci"];
        let missing = programs.into_iter().find(|name| !is_there(name))?;
        return Some(format!("{missing} is not installed"));
    }
    if let Err(error) = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        return Some(format!("/dev/kvm does not open: {error}"));
    }
    if needs == Needs::Kvm {
        return None;
    }
    if env::var_os(KERNELS).is_none() {
        return Some(format!("no Debian kernels: {KERNELS} is not set"));
    }
    // Asked once: it runs a guest.
    static DOCTOR: OnceLock<Option<String>> = OnceLock::new();
    if let Some(reason) = DOCTOR.get_or_init(|| complaint(ampoule)) {
        return Some(reason.clone());
    }
    if needs == Needs::LinuxGuests {
        return None;
    }
    if needs == Needs::Debian {
        let missing = env::var_os(DEBIAN).is_none();
        return missing.then(|| format!("no Debian system: {DEBIAN} is not set"));
    }
    if env::var_os(TOOLS).is_none() {
        return Some(format!("no tools for guests: {TOOLS} is not set"));
    }
    if !is_root() {
        return Some("needs root, for loop devices and device mapper".into());
    }
    if needs == Needs::Thorough && env::var_os(THOROUGH).is_none() {
        return Some("takes long: cargo lab test --thorough".into());
    }
    None
}

/// Why `ampoule doctor` says that no Linux guest will run here.
fn complaint(ampoule: &Path) -> Option<String> {
    let doctor = Command::new(ampoule)
        .arg("doctor")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match doctor {
        Ok(status) if status.success() => None,
        Ok(_) => Some("this machine's KVM cannot run Linux guests (ampoule doctor)".into()),
        Err(error) => Some(format!("ampoule doctor does not run: {error}")),
    }
}
