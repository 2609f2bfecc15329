//! Whole files: printed and read again, as the reference has them, and broken ones.

use super::*;

/// A scenario with all that there can be.
const ALL: &str = r#"
description = "all {{{{x}}"
tags = ["a", "b"]
timeout = "90s"
forbid = ["a {{{{b", { regex = '\{{{{2}' }]
allow = ["c"]
[vm]
kernel = "k"
append = "{{{{x}} {{.y}}"
memory = "1G"
[[vm.disk]]
path = "d"
id = "data"
[[vm.net]]
user = true
[vm.limits]
log = "2M"
[run]
image = "debian:12"
command = ["sh", "{{{{x}}"]
env = ["A=b", "C={{{{d}}"]
publish = "8080:80"
volume = ".:/src:ro"
read-only = true
[matrix]
"vm.cpus" = [2, 3]
b = ["x/y"]
a = [{ name = "{{{{n}}", vm.rng = false }]
[[step]]
expect = { regex = '(?P<v>\d+)' }
on = "output"
within = "10s"
name = "first {{{{x}}"
[[step]]
send = "{{v}} {{{{v}}\n"
echo = true
[[step]]
run = "x"
status = "any"
input = "i"
stdout = ["a", { regex = '{{v}}' }]
stderr = "e"
[[step]]
run = ["a", "b"]
[[step]]
http = "http://127.0.0.1:8080/"
body = "b"
[[step]]
tcp = "127.0.0.1:8080"
send = "s"
expect = "e"
[[step]]
file = "/f"
write = "w"
[[step]]
file = "/f"
content = "w"
[[step]]
pause = true
[[step]]
resume = true
[[step]]
power-button = true
[[step]]
reset = true
[[step]]
disk-fault = "data"
faults = [{ op = "read", nth = 2, fail = "EIO" }, { op = "flush", every = 1, fail = 99 }, { op = "discard", every = 1, delay = "5ms" }]
[[step]]
net-fault = "net0"
faults = [{ direction = "to-guest", nth = 2, effect = "drop" }, { direction = "from-guest", every = 2, effect = "duplicate" }, { direction = "to-guest", nth = 2, delay = "1s" }]
[[step]]
timeline = "init"
at-most = 2.5
times = "a"
since = "b"
[[step]]
snapshot-console = "s"
[[step]]
wait-exit = "any"
status = 3
[[step]]
expect = "x"
"#;

/// What `--dry-run` prints is the same scenario.
#[test]
fn an_effective_scenario_is_read_again() {
    let folder = Folder::new(&[("t/all.toml", ALL)]);
    let all = folder.load(&["t/all.toml"], &[]).unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!(
        all[1].name,
        "all[cpus=3,b=y,a={{n}]".replace("{{n}", "{{n}}")
    );
    for scenario in all {
        let text = to_toml(&scenario).unwrap();
        fs::write(folder.path("again.toml"), &text).unwrap();
        let mut again = folder.load(&["again.toml"], &[]).unwrap().remove(0);
        again.file.clone_from(&scenario.file);
        for (step, original) in again.steps.iter_mut().zip(&scenario.steps) {
            step.line = original.line;
        }
        assert_eq!(again, scenario, "{text}");
    }
}

/// The examples of the reference can be copied.
#[test]
fn the_reference_is_right() {
    let text = include_str!("../../../../../docs/scenarios.md");
    let blocks = text.split("```toml\n").skip(1);
    let blocks: Vec<&str> = blocks.filter_map(|it| it.split("```").next()).collect();
    assert_eq!(blocks.len(), 5);
    for block in blocks {
        let mut example = block.to_owned();
        if !block.starts_with("[vm]") {
            example = format!(
                "[vm]\nkernel = \"k\"\ndisk = [{{ path = \"d\" }}]\nnet = [{{ user = true }}]\n{block}"
            );
        }
        if !block.contains("[[step]]") {
            example += STEP;
        }
        scenarios(&example);
    }
}

/// What a worker is given says the same.
#[test]
fn a_scenario_survives_json() {
    for scenario in scenarios(ALL) {
        let text = serde_json::to_string(&scenario).unwrap();
        assert_eq!(serde_json::from_str::<Scenario>(&text).unwrap(), scenario);
    }
}

/// Parts of scenarios, whole and broken, in any order.
fn anything() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("[vm]\n"),
        Just("[run]\n"),
        Just("[matrix]\n"),
        Just("[[step]]\n"),
        Just("[[vm.disk]]\n"),
        Just("kernel = \"k\"\n"),
        Just("image = \"debian\"\n"),
        Just("command = [\"x\"]\n"),
        Just("volume = \":\"\n"),
        Just("overlay = \"path=,,\"\n"),
        Just("copy-out = \":/x\"\n"),
        Just("vm.cpus = [1, 2]\n"),
        Just("x = [{ name = \"a\", vm = 1 }]\n"),
        Just("x.y.z = [[]]\n"),
        Just("exclude = [{ x = 1 }]\n"),
        Just("extends = \"a.toml\"\n"),
        Just("expect = { regex = '(?P<v>x' }\n"),
        Just("send = \"{{v}} {{{env.BRACES}} {{\"\n"),
        Just("wait-exit = \"any\"\n"),
        Just("faults = [{ op = 1 }, 2]\n"),
        Just("disk-fault = \"\"\n"),
        Just("status = -9223372036854775808\n"),
        Just("at-most = nan\n"),
        Just("timeline = 1979-05-27\n"),
        Just("step = 1\n"),
        Just("http = \"http://[\"\n"),
        Just("\u{e9} = \"\u{e9}\"\n"),
    ];
    let parts = prop::collection::vec(part, 0..12).prop_map(|it| it.concat());
    let cut =
        (parts.clone(), any::<prop::sample::Index>(), ".{0,4}").prop_map(|(text, at, more)| {
            let mut at = at.index(text.len() + 1);
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            format!("{}{more}{}", &text[..at], &text[at..])
        });
    prop_oneof![parts, cut, any::<String>()]
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in anything(), set in "(vm|run|matrix|step|[a-z.]{0,3})?(\\.[a-z]{0,3})?=?.{0,5}") {
        let folder = Folder::new(&[("a.toml", &text)]);
        let _ = folder.load(&["a.toml"], &[]);
        for scenario in folder.load(&["a.toml"], &[&set]).into_iter().flatten() {
            to_toml(&scenario).unwrap();
        }
    }
}

#[test]
fn deep_and_long_files_are_bounded() {
    let deep = format!("{} = 1\n", vec!["a"; 200_000].join("."));
    assert!(complaint(&deep).starts_with("a.toml:1:"));
    assert!(!complaints(&format!("a = {}\n", "[".repeat(100_000))).is_empty());
    let many = "[[step]]\npause = true\n".repeat(20_000);
    let told = complaint(&format!("[vm]\nkernel = \"k\"\n{many}"));
    assert!(
        told.contains("a scenario has 10000 steps at most"),
        "{told}"
    );
    let large = format!(
        "description = \"{}\"\n[matrix]\nx = [{}]\n{MACHINE}",
        "x".repeat(1 << 19),
        (0..1000).map(|it| format!("{it},")).collect::<String>()
    );
    let told = complaint(&large);
    assert!(told.contains("too many and too large"), "{told}");
}
