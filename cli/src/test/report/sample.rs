//! A run with all that reports must show: every verdict, a matrix, retries, a console that means harm.

use crate::test::outcome::{
    Attempt, ConsoleMatch, FailureInfo, FailureKind, ScenarioResult, StepResult, StepState,
    TestRun, TimelineMark, Verdict,
};

use super::Consoles;

/// What a guest writes that wants to be more than text.
pub(crate) const HOSTILE: &[u8] = b"booting\r\n</pre></details><script>document.title='owned'</script>\n\
<img src=x onerror=alert(1)> &amp; ]]> \x00\x01\x1b[2J\x1b]0;title\x07\x9b31m\n\
overlong \xc0\xaf, half \xe2\x82, whole \xe2\x82\xac and \xe2\x80\xaedesrever\xe2\x80\xac\n\
not ok 99 - bogus\nsegfault at 0 ip 0000 sp 0000\nz\xcc\x81\xcc\x81\xcc\x81\xcc\x81\xcc\x81\xcc\x81\xcc\x81\n";

const BOOT: &str = "[    0.000000] Linux version 6.1.0-56-cloud-amd64 (debian-kernel@lists.debian.org)
[    0.000000] Command line: console=ttyS0 reboot=t panic=-1
[    0.000000] BIOS-provided physical RAM map:
[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable
[    0.012345] clocksource: kvm-clock: mask: 0xffffffffffffffff max_cycles: 0x1cd42e4dffb, max_idle_ns: 881590591483 ns
[    0.170001] virtio_blk virtio0: [vda] 2097152 512-byte logical blocks (1.07 GB/1.00 GiB)
[    0.412000] EXT4-fs (vda): mounted filesystem with ordered data mode. Quota mode: none.
[    0.500000] Run /sbin/init as init process
Debian GNU/Linux 12 ampoule ttyS0
ampoule login: root
Welcome.
# ";

fn steps(states: &[(&str, StepState)]) -> Vec<StepResult> {
    let mut at_ms = 240;
    let mut steps = Vec::new();
    for (number, (title, state)) in states.iter().enumerate() {
        let duration_ms = match state {
            StepState::NotReached => 0,
            _ => 700 + 130 * number as u64,
        };
        steps.push(StepResult {
            title: (*title).into(),
            line: 12 + 4 * number,
            state: *state,
            at_ms,
            duration_ms,
        });
        at_ms += duration_ms;
    }
    steps
}

fn timeline() -> Vec<TimelineMark> {
    let marks: [(u64, bool, &str); 12] = [
        (412, false, "arguments-parsed"),
        (1_903, false, "kvm-open"),
        (4_250, false, "memory-mapped"),
        (61_700, false, "kernel-loaded"),
        (63_020, false, "vcpus-started"),
        (64_900, true, "kernel-entry"),
        (192_000, true, "first-serial-byte"),
        (640_000, true, "init-started"),
        (930_000, true, "userspace-ready"),
        (931_000, false, "first-connection"),
        (
            2_410_000,
            true,
            "a-mark-with-a-name-that-somebody-made-rather-long",
        ),
        (2_950_000, false, "guest-power-off"),
    ];
    let marks = marks.map(|(at_us, guest, name)| TimelineMark {
        at_us,
        guest,
        name: name.into(),
    });
    marks.into()
}

/// Where a text is in the usual console.
fn found(step: usize, text: &str) -> ConsoleMatch {
    let start = BOOT.find(text).unwrap();
    ConsoleMatch {
        step: Some(step),
        start,
        end: start + text.len(),
    }
}

fn passed() -> Attempt {
    use StepState::Passed;
    Attempt {
        verdict: Verdict::Passed,
        duration_ms: 3_000,
        failure: None,
        steps: steps(&[
            ("expect /Linux version [0-9.]+/", Passed),
            ("expect \"login:\"", Passed),
            ("send \"root\\n\"", Passed),
            ("wait-exit power-off", Passed),
        ]),
        end: Some("the guest powered off".into()),
        timeline: timeline(),
        folder: None,
        matches: vec![
            found(0, "Linux version 6.1.0"),
            found(1, "login:"),
            found(2, "root\n"),
        ],
    }
}

fn failed(kind: FailureKind, message: &str, details: &[&str], console: &str) -> Attempt {
    use StepState::{Failed, NotReached, Passed};
    let verdict = match kind {
        FailureKind::Host => Verdict::Host,
        _ => Verdict::Failed,
    };
    Attempt {
        verdict,
        duration_ms: 12_400,
        failure: Some(FailureInfo {
            kind,
            step: Some(2),
            message: message.into(),
            details: details.iter().map(|it| (*it).into()).collect(),
            console: console.lines().map(Into::into).collect(),
        }),
        steps: steps(&[
            ("expect /Linux version [0-9.]+/", Passed),
            ("run mount /dev/vda /mnt", Passed),
            ("expect \"login:\"", Failed),
            ("send \"root\\n\"", NotReached),
            ("wait-exit power-off", NotReached),
        ]),
        end: Some("stopped by ampoule".into()),
        timeline: timeline(),
        folder: Some("ampoule-results/a folder".into()),
        matches: vec![found(0, "Linux version 6.1.0")],
    }
}

fn scenario(file: &str, name: &str, attempts: Vec<Attempt>) -> ScenarioResult {
    let mut verdict = attempts.last().map_or(Verdict::Skipped, |it| it.verdict);
    if verdict == Verdict::Passed && attempts.len() > 1 {
        verdict = Verdict::Flaky;
    }
    ScenarioResult {
        name: name.into(),
        file: file.into(),
        description: None,
        tags: Vec::new(),
        cell: Vec::new(),
        verdict,
        attempts,
        repeat: format!("ampoule test {file} --filter '{name}'"),
    }
}

/// The run.
pub(crate) fn run() -> TestRun {
    let mut scenarios = Vec::new();
    for kernel in ["6.1", "6.12"] {
        for memory in ["128M", "512M", "2G"] {
            let attempt = match (kernel, memory) {
                ("6.12", "128M") => failed(
                    FailureKind::HangSpinning,
                    "nothing matched \"login:\" within 10 s: the guest computes",
                    &[
                        "vCPU 0 at 0xffffffff81a3c0de, native_queued_spin_lock_slowpath+0x5e, for 9.8 s",
                        "vCPU 1 halted",
                    ],
                    BOOT,
                ),
                _ => passed(),
            };
            let name = format!("boot[kernel={kernel},memory={memory}]");
            let mut cell = scenario("tests/scenarios/boot.toml", &name, vec![attempt]);
            cell.tags = vec!["smoke".into(), "boot".into()];
            cell.description = Some(
                "A Debian kernel comes to its login, and powers off when it is told to.".into(),
            );
            cell.cell = vec![
                ("kernel".into(), kernel.into()),
                ("memory".into(), memory.into()),
            ];
            scenarios.push(cell);
        }
    }
    let panic = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009";
    let panicked = |rip: &str| {
        let text =
            format!("{BOOT}\n[    2.400000] {panic}\n[    2.400100] CPU: 0 PID: 1 Comm: init\n");
        failed(
            FailureKind::Panic,
            &format!("the guest panicked: {panic}"),
            &[
                rip,
                "rsp=0xffffc90000013e48 rflags=0x00000046 cr3=0x0000000002c0a000",
            ],
            &text,
        )
    };
    let file = "tests/scenarios/panic.toml";
    let attempts = vec![
        panicked("rip=0xffffffff810a11c4"),
        panicked("rip=0xffffffff810a11c8"),
    ];
    scenarios.push(scenario(file, "late-panic", attempts));
    scenarios.push(scenario(file, "later", Vec::new()));
    let file = "tests/scenarios/net.toml";
    let refused = failed(
        FailureKind::Deadline,
        "http://127.0.0.1:8080/health gave no answer within 10 s: connection refused",
        &[],
        BOOT,
    );
    scenarios.push(scenario(file, "net", vec![refused, passed()]));
    let mut big = failed(
        FailureKind::Host,
        "cannot take 64G of memory: out of memory",
        &["the host has 23G, of which 19G are free"],
        "",
    );
    big.steps
        .iter_mut()
        .for_each(|it| it.state = StepState::NotReached);
    big.failure.as_mut().unwrap().step = None;
    (big.timeline, big.matches, big.end) = (Vec::new(), Vec::new(), None);
    scenarios.push(scenario(file, "big", vec![big]));
    let idle = failed(
        FailureKind::HangIdle,
        "nothing matched \"login:\" within 10 s: the guest waits",
        &["all 2 vCPUs have been halted for 9.9 s"],
        BOOT,
    );
    scenarios.push(scenario(file, "idle", vec![idle]));
    let text = String::from_utf8_lossy(HOSTILE);
    let mut hostile = failed(
        FailureKind::Forbidden,
        "the console shows /segfault at/",
        &[],
        &text,
    );
    let segfault = HOSTILE.windows(8).position(|it| it == b"segfault").unwrap();
    let overlong = HOSTILE.windows(8).position(|it| it == b"overlong").unwrap();
    let mark = |step, start, end| ConsoleMatch { step, start, end };
    hostile.matches = vec![
        // Not in order, one in another, one that ends before it begins, one far away.
        mark(None, segfault, segfault + 11),
        mark(Some(0), overlong, overlong + 14),
        mark(Some(1), overlong + 9, overlong + 11),
        mark(Some(1), 40, 30),
        mark(Some(2), 100_000, 100_004),
    ];
    let name = "hostile<script>alert(1)</script>";
    let mut hostile = scenario("tests/scenarios/hostile.toml", name, vec![hostile]);
    hostile.tags = vec!["a\"b".into(), "<b>".into()];
    scenarios.push(hostile);
    TestRun {
        ampoule: "0.1.0".into(),
        started_ms: 1_796_000_000_000,
        duration_ms: 74_321,
        host: "Linux 6.1.0-56-amd64, KVM on AMD EPYC 9B14".into(),
        seed: Some(42),
        scenarios,
    }
}

/// The consoles of its attempts.
pub(crate) fn consoles() -> Consoles {
    let mut consoles = Consoles::default();
    for (scenario, result) in run().scenarios.iter().enumerate() {
        for (number, attempt) in result.attempts.iter().enumerate() {
            let text = match &attempt.failure {
                _ if result.name.starts_with("hostile") => HOSTILE.to_vec(),
                Some(failure) if failure.kind == FailureKind::Host => continue,
                Some(failure) if failure.kind == FailureKind::Panic => {
                    let text = failure.console.join("\n") + "\n";
                    text.into_bytes()
                }
                _ => BOOT.into(),
            };
            consoles.insert(scenario, number, &text);
        }
    }
    consoles
}
