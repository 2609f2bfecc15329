//! `ampoule test` with bare guests: a pass, and every kind of failure told from the others.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ampoule_tests::scenarios::{check, command, failure, folder, results};
use ampoule_tests::{guests, harness};
use tempfile::TempDir;

use crate::access;
use crate::driver::{ampoule, finish};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// A folder with a scenario in it, and a place for results.
struct Place(TempDir);

impl Place {
    fn new(scenario: &str) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let text = scenario.replace("GUESTS", env!("GUESTS_DIR"));
        fs::write(place.file(), text).unwrap();
        place
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("it.toml")
    }

    fn results(&self) -> PathBuf {
        self.0.path().join("results")
    }

    fn command(&self) -> Command {
        command(ampoule(), &[&self.file()], &self.results())
    }
}

const WAITS: &str =
    "[vm]\nkernel = \"GUESTS/idle.elf\"\nmemory = \"64M\"\n[[step]]\nexpect = \"never\"\n";

pub(crate) fn all_that_must_fail_do_for_the_right_reason_and_the_others_pass() {
    let place = tempfile::tempdir().unwrap();
    let results_folder = place.path().join("results");
    let mut run = command(ampoule(), &[&folder().join("bare")], &results_folder);
    run.args(["--jobs", "2", "--keep"]);
    finish(run)
        .expect_code(1)
        .expect_output("FAIL  fails-silent")
        .expect_output("report.html");
    let all = results(&results_folder);
    assert!(all.len() > 20, "{}", all.len());
    check(&all);
    // What a person needs, who was not there.
    let hang = results_folder.join("fails-spinning");
    for name in [
        "console.log",
        "console.txt",
        "scenario.json",
        "timeline.json",
        "metrics.json",
        "vmm.log",
        "registers.txt",
        "command.sh",
    ] {
        assert!(hang.join(name).is_file(), "{name}");
    }
    for name in ["junit.xml", "results.tap", "report.html"] {
        let text = fs::read_to_string(results_folder.join(name)).unwrap();
        assert!(text.contains("fails-spinning"), "{name}");
    }
    // The line that repeats it does.
    let repeated = place.path().join("again");
    let line = fs::read_to_string(hang.join("command.sh")).unwrap();
    assert!(line.contains("fails-spinning.toml"), "{line}");
    let mut again = Command::new("sh");
    again
        .arg(hang.join("command.sh"))
        .arg("--results")
        .arg(&repeated);
    again
        .env("AMPOULE_TEST_SCRATCH", place.path())
        .env("AMPOULE_TEST_GUESTS", env!("GUESTS_DIR"))
        .env("PATH", with_ampoule());
    finish(again).expect_code(1);
    assert_eq!(failure(&results(&repeated)[0]).0, "hang-spinning");
}

fn with_ampoule() -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = ampoule().parent().unwrap().to_owned();
    std::env::join_paths([own].into_iter().chain(std::env::split_paths(&path))).unwrap()
}

/// Starts a scenario that waits for ever, and gives the process of its VM as soon as its guest is up.
fn waiting(place: &Place) -> (Child, i32) {
    let child = place.command().stdout(Stdio::null()).spawn().unwrap();
    let console = place.results().join("it/console.txt");
    let end = Instant::now() + PATIENCE;
    while !fs::read_to_string(&console).is_ok_and(|text| text.contains("ready")) {
        assert!(Instant::now() < end, "the guest does not come up");
        thread::sleep(Duration::from_millis(10));
    }
    let tasks = fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    let children = tasks.flat_map(|task| {
        let text = fs::read_to_string(task.unwrap().path().join("children"));
        let text = text.unwrap_or_default();
        text.split_ascii_whitespace()
            .map(|word| word.parse().unwrap())
            .collect::<Vec<i32>>()
    });
    let children: Vec<i32> = children.collect();
    assert_eq!(children.len(), 1, "{children:?}");
    (child, children[0])
}

fn signal(process: i32, signal: i32) {
    // SAFETY: takes no pointer. The process is a child's child, which nobody waits for meanwhile.
    assert_eq!(unsafe { libc::kill(process, signal) }, 0);
}

pub(crate) fn a_vmm_that_is_killed_from_outside_is_told() {
    let place = Place::new(WAITS);
    let (mut ampoule, vmm) = waiting(&place);
    signal(vmm, libc::SIGKILL);
    assert_eq!(ampoule.wait().unwrap().code(), Some(1));
    let all = results(&place.results());
    let (kind, message) = failure(&all[0]);
    assert_eq!(kind, "vmm-died");
    assert!(message.contains("killed by SIGKILL"), "{message}");
    let failure = &all[0]["attempts"][0]["failure"];
    assert_eq!(
        (&failure["step"], &failure["console"][0]),
        (&0.into(), &"ready".into())
    );
}

pub(crate) fn a_vmm_that_is_stopped_is_stuck() {
    let place = Place::new(WAITS);
    let (mut ampoule, vmm) = waiting(&place);
    signal(vmm, libc::SIGSTOP);
    assert_eq!(ampoule.wait().unwrap().code(), Some(1));
    let all = results(&place.results());
    let (kind, message) = failure(&all[0]);
    assert_eq!(kind, "vmm-stuck");
    assert!(message.contains("was stopped"), "{message}");
}

pub(crate) fn an_interrupted_run_ends_with_what_there_is() {
    let place = Place::new(WAITS);
    let (mut ampoule, vmm) = waiting(&place);
    signal(ampoule.id().cast_signed(), libc::SIGINT);
    assert_eq!(ampoule.wait().unwrap().code(), Some(130));
    assert_eq!(results(&place.results())[0]["verdict"], "skipped");
    assert!(
        !Path::new(&format!("/proc/{vmm}")).exists(),
        "its VM is gone"
    );
}

pub(crate) fn a_host_without_kvm_is_host_trouble() {
    let name = "scenarios::a_host_without_kvm_is_host_trouble";
    if !access::is_root() {
        return harness::skip(name, "only root can make a /dev of its own");
    }
    let place = Place::new(&WAITS.replace("GUESTS/idle.elf", "/dev/guest"));
    let run = access::without_kvm(&[
        "test",
        place.file().to_str().unwrap(),
        "--results",
        place.results().to_str().unwrap(),
    ]);
    finish(run).expect_code(125).expect_output("HOST");
    let all = results(&place.results());
    assert_eq!(all[0]["verdict"], "host");
    let (kind, message) = failure(&all[0]);
    assert_eq!(kind, "host");
    assert!(message.contains("/dev/kvm"), "{message}");
}

pub(crate) fn scenarios_that_are_wrong_boot_nothing() {
    let place =
        Place::new("[vm]\nkernal = \"k\"\n[[step]]\nexpect = { regex = \"(\" }\nwithin = 5\n");
    let said = finish(place.command()).expect_code(2);
    for expected in [
        "it.toml:2:1: unknown key \"kernal\"",
        "did you mean \"kernel\"?",
        "it.toml:4:20: ",
        "it.toml:5:10: ",
    ] {
        assert!(
            said.errors.contains(expected),
            "no {expected:?} in {}",
            said.errors
        );
    }
    assert!(!place.results().exists());
}

pub(crate) fn a_pass_on_a_retry_is_flaky() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let step =
        format!("[[step]]\ntcp = \"127.0.0.1:{port}\"\nexpect = \"yes\"\nwithin = \"500ms\"\n");
    let place = Place::new(&WAITS.replace("[[step]]\nexpect = \"never\"\n", &step));
    let second = place.results().join("it.2");
    // It answers well once there is a second attempt.
    thread::spawn(move || {
        for stream in server.incoming() {
            let answer: &[u8] = if second.exists() { b"yes\n" } else { b"no\n" };
            let _ = stream.and_then(|mut stream| stream.write_all(answer));
        }
    });
    let mut run = place.command();
    run.args(["--retries", "2", "--keep"]);
    finish(run).expect_code(0).expect_output("flaky");
    let all = results(&place.results());
    assert_eq!(all[0]["verdict"], "flaky");
    let attempts = all[0]["attempts"].as_array().unwrap();
    let verdicts: Vec<&str> = attempts
        .iter()
        .map(|it| it["verdict"].as_str().unwrap())
        .collect();
    assert_eq!(verdicts, ["failed", "passed"]);
}

pub(crate) fn the_first_failure_may_be_the_last() {
    let place = tempfile::tempdir().unwrap();
    let results_folder = place.path().join("results");
    let files = ["fails-early.toml", "hello.toml", "marks.toml"]
        .map(|name| folder().join("bare").join(name));
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let mut run = command(ampoule(), &files, &results_folder);
    run.arg("--fail-fast");
    finish(run).expect_code(1);
    let all = results(&results_folder);
    let verdicts: Vec<&str> = all
        .iter()
        .map(|it| it["verdict"].as_str().unwrap())
        .collect();
    assert_eq!(verdicts, ["failed", "skipped", "skipped"]);
}

pub(crate) fn scenarios_are_listed_chosen_and_told_as_tap() {
    let place = tempfile::tempdir().unwrap();
    let file = folder().join("bare");
    let mut list = command(ampoule(), &[&file], &place.path().join("none"));
    list.args(["--list", "--filter", "hello", "--filter", "marks"]);
    assert_eq!(finish(list).expect_code(0).text(), "hello\nmarks\n");
    let mut tap = command(ampoule(), &[&file], &place.path().join("results"));
    tap.args(["--filter", "hello", "--format", "tap"]);
    let said = finish(tap).expect_code(0).text();
    assert!(
        said.contains("1..1\n") && said.contains("\nok 1 - hello"),
        "{said}"
    );
}

pub(crate) fn bisect_finds_the_first_kernel_that_fails() {
    let place = Place::new(
        "[[step]]\nexpect = \"Hello\"\n[vm]\nkernel = \"overridden\"\nmemory = \"64M\"\n",
    );
    let kernel = |version: u32| place.0.path().join(format!("vmlinuz-6.1.{version}"));
    for version in [8, 9, 10, 11, 12, 13] {
        // As versions, not as texts.
        let guest = if version >= 11 {
            guests::PANIC_TEXT
        } else {
            guests::SERIAL_HELLO
        };
        symlink(guest, kernel(version)).unwrap();
    }
    let mut run = Command::new(ampoule());
    run.arg("bisect").arg(place.file());
    run.arg("--good")
        .arg(kernel(8))
        .arg("--bad")
        .arg(kernel(13));
    run.arg("--results").arg(place.results());
    let said = finish(run).expect_code(0).text();
    let found = BufReader::new(said.as_bytes())
        .lines()
        .map_while(Result::ok);
    let found: Vec<String> = found.filter(|line| line.starts_with("the ")).collect();
    assert_eq!(found.len(), 2, "{said}");
    assert!(
        found[0].starts_with("the first that fails is ") && found[0].ends_with("vmlinuz-6.1.11"),
        "{said}"
    );
    assert!(found[1].ends_with("vmlinuz-6.1.10"), "{said}");
}

/// What junitparser (PyPI; Debian's python3-junitparser), which nobody here wrote, finds in a file.
const READ_JUNIT: &str = r#"
import sys
try:
    from junitparser.xunit2 import JUnitXml
except ImportError:
    sys.exit(77)
xml = JUnitXml.fromfile(sys.argv[1])
for case in (case for suite in xml for case in suite):
    kinds = " ".join(type(it).__name__ + ":" + str(it.type) for it in case.result)
    print(case.name, "|", kinds, "|", len(list(case.flaky_failures())), len(list(case.rerun_failures())))
print(xml.tests, xml.failures, xml.errors)
"#;

pub(crate) fn junit_and_tap_are_read_by_others() {
    let place = tempfile::tempdir().unwrap();
    let results_folder = place.path().join("results");
    let files = ["hello.toml", "fails-early.toml", "fails-crash.toml"];
    let files = files.map(|name| folder().join("bare").join(name));
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let mut run = command(ampoule(), &files, &results_folder);
    run.args(["--retries", "1"]);
    finish(run).expect_code(1);
    let name = "scenarios::junit_and_tap_are_read_by_others";
    let Ok(said) = Command::new("prove")
        .args(["--exec", "cat"])
        .arg(results_folder.join("results.tap"))
        .output()
    else {
        return harness::skip(name, "perl's prove is not installed");
    };
    let said = String::from_utf8_lossy(&said.stdout);
    assert!(
        said.contains("Failed 2/3 subtests") && !said.contains("Parse errors"),
        "{said}"
    );
    // The distribution's Python has the distribution's packages; another may be first on PATH.
    for python in ["/usr/bin/python3", "python3"] {
        let read = Command::new(python)
            .args(["-c", READ_JUNIT])
            .arg(results_folder.join("junit.xml"))
            .output();
        let Ok(read) = read else { continue };
        if read.status.code() == Some(77) {
            continue;
        }
        let said = String::from_utf8_lossy(&read.stdout);
        let lines: Vec<&str> = said.lines().collect();
        let expected = [
            "hello |  | 0 0",
            "fails-early | Failure:unexpected-end | 0 1",
            "fails-crash | Failure:crash | 0 1",
            "3 2 0",
        ];
        assert_eq!(lines, expected, "{}", String::from_utf8_lossy(&read.stderr));
        return;
    }
    harness::skip(
        name,
        "no Python has junitparser (package python3-junitparser)",
    );
}
