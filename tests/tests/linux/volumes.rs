//! Directories that guests share with their host: `--volume`, `--root`, `--fs`. Where it matters, as a user without root's rights.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ampoule_vmm::VmBuilder;
use ampoule_vmm::config::{FsConfig, VmConfig};
use tempfile::TempDir;

use crate::command;
use crate::driver::{self, Vm, finish};
use crate::embedded::{Guest, config};
use crate::guest::LOAD_VIRTIO;
use crate::user::kvm_group;

/// Nobody in particular.
const USER: u32 = 1234;

/// Longer than processes take to end, in an emulated machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Folders of a user's.
struct Home {
    folder: TempDir,
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["cache", "shared", "other"] {
            fs::create_dir(folder.path().join(name)).unwrap();
            chown(folder.path().join(name), Some(USER), Some(USER)).unwrap();
        }
        Self { folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn volume(&self, name: &str, rest: &str) -> String {
        format!("--volume={}:{rest}", self.at(name).display())
    }

    /// `ampoule run` as a user who is in a group that the program is not to lose, with these options and what comes before them.
    fn user(&self, options: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", &USER.to_string(), "--regid", &USER.to_string()])
            .args(["--groups", &format!("{USER},4,{}", kvm_group())])
            .arg(driver::ampoule())
            .args(["run", "--net", "none"])
            .args(options)
            .env("XDG_CACHE_HOME", self.at("cache"))
            .env("AMPOULE_KERNEL", command::kernel_of("6.1"));
        command
    }

    /// A shell in a guest, which takes what it is sent.
    fn shell(&self, options: &[&str]) -> Vm {
        let mut command = self.user(options);
        command.arg("-i").arg(command::root()).args(["--", "sh"]);
        Vm::piped(command)
    }

    /// The processes that serve these folders.
    fn servers(&self) -> Vec<u32> {
        let own = self.folder.path().to_str().unwrap();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(number) = entry.file_name().to_string_lossy().parse() else {
                continue;
            };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            if line.contains("virtiofsd") && line.contains(own) {
                found.push(number);
            }
        }
        found
    }

    /// Waits until there are none.
    fn expect_no_servers(&self) {
        let limit = Instant::now() + PATIENCE;
        while !self.servers().is_empty() {
            assert!(Instant::now() < limit, "{:?} are left", self.servers());
            thread::yield_now();
        }
    }
}

/// Has the guest's shell do something, and waits for it.
fn ask(vm: &mut Vm, what: &str) -> String {
    vm.send(&format!("{{ {what}\n}} 2>&1; echo don''e\n"));
    let said = vm.read_until("done\n");
    said.trim_end_matches("done\n").to_owned()
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 251) as u8 ^ at as u8).collect()
}

fn sum(path: &Path) -> String {
    let output = Command::new("md5sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..32].to_owned()
}

pub(crate) fn both_sides_read_and_write() {
    const LEN: usize = 24 << 20;
    let home = Home::new();
    fs::write(home.at("shared/from-host"), "host\n").unwrap();
    fs::write(home.at("shared/large"), bytes(LEN)).unwrap();
    fs::write(home.at("other/kept"), "kept\n").unwrap();
    for name in ["shared/from-host", "shared/large", "other/kept"] {
        chown(home.at(name), Some(USER), Some(USER)).unwrap();
    }
    let options = [
        &*home.volume("shared", "/data"),
        &home.volume("other", "/deep/in/it:ro"),
    ];
    let mut vm = home.shell(&options);
    assert_eq!(ask(&mut vm, "cat /data/from-host"), "host\n");
    assert_eq!(
        ask(&mut vm, "stat -c '%u %g %a' /data/from-host"),
        "0 0 644\n"
    );
    assert_eq!(
        ask(
            &mut vm,
            "echo guest >/data/from-guest; mkdir /data/d; mv /data/from-guest /data/d"
        ),
        ""
    );
    let written = home.at("shared/d/from-guest");
    assert_eq!(fs::read_to_string(&written).unwrap(), "guest\n");
    let found = fs::metadata(&written).unwrap();
    assert_eq!((found.uid(), found.gid()), (USER, USER));
    // Each side's sums are the other's.
    let said = ask(
        &mut vm,
        "md5sum /data/large; cp /data/large /data/copy; sync",
    );
    assert!(said.starts_with(&sum(&home.at("shared/large"))), "{said}");
    assert_eq!(sum(&home.at("shared/copy")), sum(&home.at("shared/large")));
    // What is unlinked lives on while it is open, on either side.
    ask(&mut vm, "exec 3</data/from-host; rm /data/from-host");
    assert!(!home.at("shared/from-host").exists());
    assert_eq!(ask(&mut vm, "cat <&3"), "host\n");
    // A read-only one cannot be talked out of it.
    assert_eq!(ask(&mut vm, "cat /deep/in/it/kept"), "kept\n");
    for attempt in [
        "echo x >/deep/in/it/new",
        "mount -o remount,rw /deep/in/it; echo x >/deep/in/it/new",
        "rm /deep/in/it/kept",
        "chmod 777 /deep/in/it/kept",
    ] {
        let said = ask(&mut vm, attempt);
        assert!(said.contains("Read-only file system"), "{attempt}: {said}");
    }
    assert!(!home.at("other/new").exists());
    assert_eq!(home.servers().len(), 4, "two for each, and all are known");
    vm.send("exit 7\n");
    vm.end().expect_code(7).expect_silence();
    assert!(home.servers().is_empty(), "{:?} are left", home.servers());
}

pub(crate) fn a_server_that_is_killed_leaves_errors_and_the_guest() {
    let home = Home::new();
    fs::write(home.at("shared/file"), "text\n").unwrap();
    let mut vm = home.shell(&[&home.volume("shared", "/data")]);
    assert_eq!(ask(&mut vm, "cat /data/file"), "text\n");
    // Somebody is asking all the time.
    ask(
        &mut vm,
        "(while cat /data/new 2>&1 | grep -q 'No such file'; do :; done; echo over) & sleep 0",
    );
    for server in home.servers() {
        // SAFETY: takes no pointer; it is a process of this test's, which works for its guest until that ends.
        unsafe { libc::kill(server.cast_signed(), libc::SIGKILL) };
    }
    vm.expect("over\n");
    let said = ask(&mut vm, "ls /data; cat /data/file");
    assert!(said.contains("not connected"), "{said}");
    assert_eq!(ask(&mut vm, "echo alive"), "alive\n");
    vm.send("exit 0\n");
    vm.end()
        .expect_code(0)
        .expect_error("volume0: its back end is gone, and every request fails")
        .expect_error("volume0: virtiofsd has ended");
}

pub(crate) fn nothing_is_left_when_ampoule_is_killed() {
    let home = Home::new();
    let before = fs::read_dir(home.folder.path()).unwrap().count();
    let mut vm = home.shell(&[&home.volume("shared", "/data")]);
    assert_eq!(ask(&mut vm, "echo x >/data/x; echo y"), "y\n");
    assert!(!home.servers().is_empty());
    vm.signal(libc::SIGKILL);
    vm.end().expect_signal(libc::SIGKILL);
    home.expect_no_servers();
    assert_eq!(fs::read_dir(home.folder.path()).unwrap().count(), before);
    // And the next one works.
    let mut command = home.user(&[&home.volume("shared", "/data")]);
    command.arg(command::root()).args(["--", "cat", "/data/x"]);
    finish(command).expect_code(0).expect_output("x\n");
}

/// The host's own programs over its own files.
pub(crate) fn the_hosts_own_files_are_a_root() {
    let home = Home::new();
    let script = "echo $(id -u) $(ls /tmp /run | wc -w); head -c 100000 /usr/bin/perl | md5sum; \
                  touch /etc/ampoule-was-here; perl -e 'print 6 * 7'; echo; cat /etc/shadow";
    let mut command = home.user(&["--root", "/", "--read-only"]);
    command.args(["--", "sh", "-c", script]);
    let end = finish(command).expect_code(1);
    let host = Command::new("sh")
        .args(["-c", "head -c 100000 /usr/bin/perl | md5sum"])
        .output()
        .unwrap();
    let host = String::from_utf8(host.stdout).unwrap();
    // Of what is mounted elsewhere on the host, its guest sees nothing.
    let end = end.expect_output(&host).expect_output("42\n");
    assert!(end.text().starts_with("0 "), "{}", end.text());
    let end = end.expect_error("Read-only file system");
    // What the user may not read, the guest's root may not.
    end.expect_error("/etc/shadow: Permission denied");
    // What is written goes to the guest's memory.
    let script = "touch /ampoule-was-here /etc/ampoule-was-here && echo more >>/etc/passwd && tail -n 1 /etc/passwd";
    let mut command = home.user(&["--root", "/"]);
    command.args(["--", "sh", "-c", script]);
    finish(command).expect_code(0).expect_output("more\n");
    for path in ["/ampoule-was-here", "/etc/ampoule-was-here"] {
        assert!(!Path::new(path).exists(), "{path}");
    }
    let accounts = fs::read_to_string("/etc/passwd").unwrap();
    assert!(!accounts.contains("more\n"));
}

/// A file that is mapped in the guest is the host's.
pub(crate) fn a_mapped_file_is_the_hosts() {
    let home = Home::new();
    fs::write(home.at("shared/map"), bytes(8192)).unwrap();
    chown(home.at("shared/map"), Some(USER), Some(USER)).unwrap();
    let program = "import mmap; f = open('/mnt/map', 'r+b'); m = mmap.mmap(f.fileno(), 0); \
                   assert m[251] == 251 ^ 1, m[251]; m[4096:4100] = b'here'; m.flush(); m.close()";
    let mut command = home.user(&["--root", "/", "--read-only"]);
    command.arg(home.volume("shared", "/mnt"));
    command.args(["--", "python3", "-c", program]);
    finish(command).expect_code(0).expect_silence();
    let mapped = fs::read(home.at("shared/map")).unwrap();
    assert_eq!(&mapped[4096..4100], b"here");
    assert_eq!(mapped.len(), 8192);
}

pub(crate) fn what_cannot_be_shared_is_said_before_anything_starts() {
    let home = Home::new();
    fs::write(home.at("file"), "").unwrap();
    for (volume, complaint) in [
        (home.volume("none", "/data"), "no such file or directory"),
        (home.volume("file", "/data"), "it is not a directory"),
    ] {
        let mut command = home.user(&[&volume]);
        command.arg(command::root()).args(["--", "true"]);
        let end = finish(command).expect_code(125);
        end.expect_error("cannot share").expect_error(complaint);
    }
    let mut command = home.user(&["--fs", "tag=a,socket=/no/such"]);
    command.arg(command::root()).args(["--", "true"]);
    finish(command)
        .expect_code(125)
        .expect_error("\"/no/such\"")
        .expect_error("start the back end first");
}

/// By the library, with a kernel's own mount, and through pauses and a reset.
pub(crate) fn a_shared_directory_goes_on_after_a_pause() {
    const PAUSE: Duration = Duration::from_secs(2);
    let folder = tempfile::tempdir().unwrap();
    let config = VmConfig {
        fs: vec![FsConfig::path("files", folder.path())],
        cpus: 2,
        ..config()
    };
    let mut guest = Guest::boot(VmBuilder::new(config));
    guest.ask(LOAD_VIRTIO);
    guest.ask("mkdir /mnt; mount -t virtiofs files /mnt");
    guest.ask("dd if=/dev/urandom of=/tmp/source bs=64k count=64; echo >/mnt/lines");
    guest.begin(
        "for i in 1 2; do cp /tmp/source /mnt/copy$i; cmp /tmp/source /mnt/copy$i || exit; \
         rm /mnt/copy$i; done; seq 50 | while read n; do echo $n >>/mnt/lines; done; md5sum /tmp/source",
    );
    let lines = folder.path().join("lines");
    for _ in 0..3 {
        guest.vm.pause().unwrap();
        let picture = || {
            let names = fs::read_dir(folder.path()).unwrap();
            let mut all: Vec<_> = names
                .flatten()
                .map(|it| (it.file_name(), it.metadata().unwrap().len()))
                .collect();
            all.sort();
            all
        };
        let before = picture();
        thread::sleep(PAUSE);
        assert_eq!(picture(), before, "a paused guest has written");
        guest.vm.resume().unwrap();
    }
    guest.answer();
    assert_eq!(fs::read_to_string(&lines).unwrap().lines().count(), 51);
    // Another machine has another server.
    guest.vm.reset().unwrap();
    guest.expect("guest ready: ");
    guest.ask(LOAD_VIRTIO);
    guest.ask("mkdir /mnt; mount -t virtiofs files /mnt; test $(wc -l </mnt/lines) = 51");
    guest.power_off();
}
