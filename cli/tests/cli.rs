//! The binary as a person meets it, without a VM: help, mistakes, configuration files, generated texts, the doctor.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// Runs the binary with these arguments and with nothing to read.
fn ampoule(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ampoule"))
        .args(args)
        .stdin(Stdio::null())
        .env_remove("NO_COLOR")
        .output()
        .expect("the binary runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// A mistake: 125, one complaint on standard error, nothing on standard output.
fn complaint(args: &[&str]) -> String {
    let output = ampoule(args);
    assert_eq!(output.status.code(), Some(125), "{args:?}: {output:?}");
    assert_eq!(stdout(&output), "", "{args:?}");
    let text = stderr(&output);
    assert!(text.starts_with("error: "), "{args:?}: {text}");
    assert!(!text.contains("(os error"), "{args:?}: {text}");
    assert!(text.lines().count() <= 2, "one error, one help: {text}");
    text
}

/// A directory of one test, removed in the end.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Self {
        let name = format!("ampoule-cli-{}-{test}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a directory for the test");
        Self(path)
    }

    fn file(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).expect("a file for the test");
        path.to_str().expect("UTF-8").to_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn help_reads_well() {
    let output = ampoule(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    for word in [
        "run",
        "image",
        "doctor",
        "completions",
        "man",
        "Examples:",
        "--version",
    ] {
        assert!(text.contains(word), "{word} is not in\n{text}");
    }
    let text = stdout(&ampoule(&["run", "--help"]));
    let headings = [
        "\nGuest:\n",
        "\nMachine:\n",
        "\nConsole:\n",
        "\nLife and death:\n",
        "\nInsight:\n",
        "\nConfiguration:\n",
        "\nExamples:\n",
    ];
    assert!(text.contains("\nRegistry:\n"), "{text}");
    let mut from = 0;
    for heading in headings {
        let at = text[from..].find(heading);
        from += at.unwrap_or_else(|| panic!("{heading:?} is missing or out of order in\n{text}"));
    }
    for line in text.lines() {
        assert!(line.chars().count() <= 100, "too wide: {line}");
    }
    for flag in "kernel initrd cmdline append entry cpus memory hugepages memory-backing serial on-reboot grace timeout \
                 timeline config print-config log-level"
        .split_whitespace()
    {
        assert!(text.contains(&format!("--{flag}")), "--{flag} is not in\n{text}");
    }
    for code in ["124", "125", "134", "128 + N"] {
        assert!(text.contains(code), "exit status {code} is not in\n{text}");
    }
}

#[test]
fn the_version_is_the_package_s() {
    let output = ampoule(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        stdout(&output),
        concat!("ampoule ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[test]
#[cfg(feature = "image")]
fn what_would_be_ignored_is_refused() {
    for (args, word) in [
        (&["run", "--kernel", "k", "--tty"][..], "--tty"),
        (&["run", "--kernel", "k", "--publish", "80:80"], "--publish"),
        (&["run", "--kernel", "k", "--copy", "a:/b"], "--copy"),
        (&["run", "--kernel", "k", "--", "true"], "CMD"),
        (&["run", "/", "--initrd", "i", "--", "true"], "--initrd"),
        (
            &["run", "/", "--vsock", "cid=3,socket=s", "--", "true"],
            "--vsock",
        ),
        (
            &["run", "/", "--serial", "stdio", "--", "true"],
            "--serial stdio",
        ),
        (
            &["run", "/", "--console", "stdio", "--", "true"],
            "--console stdio",
        ),
        (
            &["run", "/", "--file", "/proc/self/exe", "--", "true"],
            "--file",
        ),
        (
            &["run", "--file", "/proc/self/exe", "--overlay", "size=1G"],
            "--overlay",
        ),
        (
            &["run", "/", "--read-only", "--overlay", "size=1G"],
            "--overlay",
        ),
        (&["run", "/", "--overlay", "sze=1G"], "did you mean size?"),
        (
            &["run", "/", "--copy", "/no/such:/b", "--", "true"],
            "\"/no/such\"",
        ),
        (
            &["run", "/", "--copy", "a:b", "--", "true"],
            "begins by a /",
        ),
        (
            &["run", "/", "--copy-out", "/a:/no/such/b", "--", "true"],
            "\"/no/such/b\"",
        ),
        (
            &["run", "/", "--max-copy-size", "1G", "--", "true"],
            "--copy-out",
        ),
    ] {
        let text = complaint(args);
        assert!(text.contains(word), "{args:?}: {text}");
    }
}

#[test]
fn nothing_to_do_is_a_mistake_that_shows_help() {
    let output = ampoule(&[]);
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("Usage: ampoule"));
}

#[test]
fn wrong_flags_name_the_nearest() {
    assert_eq!(
        complaint(&["run", "--kernal", "x"]),
        "error: unexpected argument '--kernal' found\nhelp: did you mean \"--kernel\"?\n"
    );
    assert!(complaint(&["rum"]).contains("did you mean \"run\"?"));
    assert!(complaint(&["run", "--on-reboot", "restrat"]).contains("did you mean \"restart\"?"));
}

#[test]
fn wrong_values_are_refused_with_examples() {
    assert!(complaint(&["run", "--memory", "12X"]).contains("512M"));
    assert!(complaint(&["run", "--timeout", "5"]).contains("500ms"));
    assert!(complaint(&["run", "--serial", "tty"]).contains("socket:PATH"));
    assert!(complaint(&["run", "--cpus", "-1"]).starts_with("error: "));
    assert!(complaint(&["run", "--cpus", "1", "--cpus", "2"]).contains("--cpus"));
    assert!(complaint(&["doctor", "--jsn"]).contains("did you mean \"--json\"?"));
}

#[test]
fn what_cannot_be_a_vm_is_refused_before_anything_starts() {
    assert!(complaint(&["run"]).contains("help: name one: --kernel"));
    assert!(complaint(&["run", "--kernel", "x", "--cpus", "0"]).contains("not 0"));
    assert!(complaint(&["run", "--kernel", "x", "--memory", "1M"]).contains("1M"));
    assert!(complaint(&["run", "--kernel", "x", "--memory", "16777215T"]).contains("out of range"));
    let long = "x".repeat(70_000);
    assert!(complaint(&["run", "--kernel", "x", "--cmdline", &long]).contains("70000 bytes"));
}

#[test]
fn a_timeline_that_cannot_be_written_is_told_first() {
    let text = complaint(&["run", "--kernel", "x", "--timeline", "/no/such/dir/t.json"]);
    assert!(text.contains("/no/such/dir/t.json"), "{text}");
    assert!(text.contains("no such file or directory"), "{text}");
}

#[test]
fn a_file_and_flags_make_one_configuration() {
    let directory = Directory::new("effective");
    let file = directory.file(
        "vm.toml",
        "kernel = \"/boot/k\"\ncpus = 2\nmemory = \"1G\"\n",
    );
    let output = ampoule(&["run", "--config", &file, "--cpus", "4", "--print-config"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let printed = stdout(&output);
    for line in [
        "kernel = \"/boot/k\"",
        "cpus = 4",
        "memory = \"1G\"",
        "on-reboot = \"exit\"",
    ] {
        assert!(
            printed.lines().any(|l| l == line),
            "{line} is not in\n{printed}"
        );
    }
    let again = directory.file("again.toml", &printed);
    assert_eq!(
        stdout(&ampoule(&["run", "--config", &again, "--print-config"])),
        printed
    );
}

#[test]
fn a_configuration_without_a_kernel_can_be_printed_and_a_wrong_one_cannot() {
    assert_eq!(ampoule(&["run", "--print-config"]).status.code(), Some(0));
    assert!(
        complaint(&["run", "--print-config", "--kernel", "k", "--cpus", "0"]).contains("vCPUs")
    );
}

#[test]
fn mistakes_in_a_file_are_told_with_their_place() {
    let directory = Directory::new("mistakes");
    let cases: [(&str, &str, &str); 6] = [
        (
            "cpus = 1\nkernal = \"x\"\n",
            ":2:1: unknown key \"kernal\"",
            "\"kernel\"",
        ),
        (
            "cpus = 1\n\ncpus = 2\n",
            ":3:1: the key \"cpus\" is there twice",
            "",
        ),
        (
            "on-reboot = \"restrat\"\n",
            ":1:13: unknown value \"restrat\"",
            "\"restart\"",
        ),
        ("memory = \"12X\"\n", ":1:10: ", "512M"),
        (
            "[guest]\ncpus = 1\n",
            ":1:2: unknown key \"guest\"",
            "known are kernel",
        ),
        ("cpus = \"", ":1:", "error: "),
    ];
    for (text, place, rest) in cases {
        let file = directory.file("vm.toml", text);
        let complaint = complaint(&["run", "--config", &file]);
        assert!(
            complaint.contains(&format!("{file}{place}")),
            "{text:?}: {complaint}"
        );
        assert!(complaint.contains(rest), "{text:?}: {complaint}");
    }
}

#[test]
fn files_that_are_no_configuration_are_told() {
    let directory = Directory::new("files");
    let missing = complaint(&["run", "--config", "/no/such/vm.toml"]);
    assert!(
        missing.contains("\"/no/such/vm.toml\": no such file"),
        "{missing}"
    );
    let binary = directory.file("binary.toml", b"\xff\xfe\x00");
    assert!(complaint(&["run", "--config", &binary]).contains("UTF-8"));
}

#[test]
fn completions_are_generated_for_all_shells() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = ampoule(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        let text = stdout(&output);
        assert!(text.contains("memory-backing"), "{shell}: {text}");
    }
    assert!(complaint(&["completions", "tcsh"]).contains("zsh"));
}

#[test]
fn manual_pages_are_generated() {
    for (args, heading) in [
        (&["man"][..], ".TH ampoule 1"),
        (&["man", "run"], ".TH ampoule-run 1"),
        (&["man", "image"], ".TH ampoule-image 1"),
        (&["man", "doctor"], ".TH ampoule-doctor 1"),
    ] {
        let output = ampoule(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        let text = stdout(&output);
        assert!(text.contains(heading), "{args:?}: {text}");
    }
    assert!(stdout(&ampoule(&["man", "run"])).contains("memory\\-backing"));
}

/// The exit status follows the verdict, whichever this machine gives.
#[test]
fn the_doctor_s_status_json_and_text_agree() {
    let json = ampoule(&["doctor", "--json"]);
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let runs = value["linux-guests"].as_bool().expect("a verdict");
    assert_eq!(json.status.code(), Some(if runs { 0 } else { 1 }));
    assert_eq!(stderr(&json), "");

    let text = ampoule(&["doctor"]);
    assert_eq!(text.status.code(), json.status.code());
    let text = stdout(&text);
    assert!(!text.contains('\x1b'), "colour goes to terminals only");
    let sections = value["sections"].as_array().expect("sections");
    let names: Vec<&str> = sections
        .iter()
        .flat_map(|section| section["checks"].as_array().expect("checks"))
        .map(|check| {
            let status = check["status"].as_str().expect("a status");
            assert!(["ok", "warn", "missing"].contains(&status), "{check}");
            check["name"].as_str().expect("a name")
        })
        .collect();
    for name in [
        "/dev/kvm",
        "huge pages 2M",
        "/dev/net/tun",
        "io_uring",
        "landlock",
        "cgroup",
    ] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    for name in names {
        assert!(text.contains(name), "{name} is not in\n{text}");
    }
}

/// A reader that has seen enough is no error, and no panic.
#[test]
fn a_closed_pipe_ends_it_quietly() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ampoule"))
        .args(["completions", "zsh"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stderr(&output), "");
}

/// A kernel as a distribution installs it, with these modules built in.
#[cfg(feature = "image")]
fn kernel(directory: &Directory, built_in: &str) -> String {
    fs::create_dir_all(directory.0.join("boot")).expect("a folder for the kernel");
    let modules = directory.0.join("lib/modules/1.2-test");
    fs::create_dir_all(&modules).expect("a folder for modules");
    fs::write(modules.join("modules.builtin"), built_in).expect("a list of modules");
    directory.file("boot/vmlinuz-1.2-test", "no kernel, in fact")
}

#[cfg(feature = "image")]
#[test]
fn a_disk_is_looked_at_before_a_guest_runs() {
    let directory = Directory::new("boot-disk");
    let built_in = "drivers/virtio/virtio_mmio.ko\ndrivers/block/virtio_blk.ko\nfs/ext4/ext4.ko\n";
    let kernel = kernel(&directory, built_in);
    let with = |at: usize, bytes: &[u8]| {
        let mut disk = vec![0; 128 << 10];
        disk[at..at + bytes.len()].copy_from_slice(bytes);
        directory.file("disk", disk)
    };
    let said = |disk: &str| complaint(&["run", "--kernel", &kernel, "--disk", disk]);
    for (at, bytes, what, help) in [
        (0, &b""[..], "it is empty", "--initrd"),
        (0, b"QFI\xfb", "it is a qcow2 image", "format=qcow2"),
        (0, b"KDMV", "it is a VMDK image", "qemu-img convert"),
        (0, b"\xfd7zXZ\0", "xz has packed", "unpack it"),
        (0, b"LUKS\xba\xbe", "it is encrypted", "--initrd"),
    ] {
        let disk = with(at, bytes);
        let text = said(&disk);
        assert!(
            text.contains("there is nothing to boot from on the disk"),
            "{text}"
        );
        assert!(text.contains(what) && text.contains(help), "{text}");
    }
    let new = directory.0.join("new").display().to_string();
    let text = said(&format!("{new},size=1M"));
    assert!(text.contains("it is empty"), "{text}");
    let disk = with(0, b"XFSB");
    let text = said(&disk);
    assert!(text.contains("has no driver xfs"), "{text}");
    // Whoever says where the root is, or brings an initrd, knows.
    let text = complaint(&[
        "run",
        "--kernel",
        &kernel,
        "--disk",
        &disk,
        "--append",
        "root=/dev/vda",
    ]);
    assert!(!text.contains("xfs"), "{text}");
}

#[cfg(feature = "image")]
#[test]
fn a_disk_that_is_booted_from_is_part_of_the_configuration() {
    let directory = Directory::new("boot-disk-config");
    let built_in = "drivers/virtio/virtio_mmio.ko\ndrivers/block/virtio_blk.ko\nfs/ext4/ext4.ko\n";
    let kernel = kernel(&directory, built_in);
    let mut disk = vec![0; 128 << 10];
    disk[1080..1082].copy_from_slice(b"\x53\xef");
    let disk = directory.file("disk", disk);
    let print = |kernel: &str, disk: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_ampoule"))
            .args(["run", "--print-config", "--kernel", kernel, "--disk", disk])
            .env("XDG_CACHE_HOME", directory.0.join("cache"))
            .output()
            .expect("the binary runs");
        assert!(output.status.success(), "{output:?}");
        stdout(&output)
    };
    let text = print(&kernel, &disk);
    let made = fs::read_dir(directory.0.join("cache/ampoule/initramfs"));
    let mut made = made.expect("a cache").flatten();
    let made = made.find(|entry| entry.path().extension().is_some_and(|it| it == "cpio"));
    let made = made.expect("an archive");
    assert!(
        text.contains(&format!("initrd = \"{}\"", made.path().display())),
        "{text}"
    );
    // One whose drivers are all built in does it by itself.
    let alone = directory.file("vmlinux", "none either");
    let text = print(&alone, &disk);
    assert!(
        !text.contains("initrd") && text.contains("root=/dev/vda rw"),
        "{text}"
    );
    let text = print(&alone, &format!("{disk},readonly"));
    assert!(text.contains("root=/dev/vda ro"), "{text}");
    let text = print(&alone, &directory.file("blank", [0; 4096]));
    assert!(!text.contains("root="), "{text}");
}

#[test]
fn scenarios_are_checked_before_anything_boots() {
    let directory = Directory::new("scenarios");
    let step = "[[step]]\nwait-exit = \"any\"\n";
    let good = directory.file(
        "good.toml",
        format!("tags = [\"fast\"]\n[vm]\nkernel = \"k\"\n[matrix]\nvm.cpus = [1, 2]\n{step}"),
    );
    let list = ampoule(&["test", "--list", &good]);
    assert_eq!(list.status.code(), Some(0), "{list:?}");
    assert_eq!(stdout(&list), "good[cpus=1]\ngood[cpus=2]\n");
    let chosen = ampoule(&[
        "test", "--list", "--filter", "cpus=2", "--tag", "fast", &good,
    ]);
    assert_eq!(stdout(&chosen), "good[cpus=2]\n");
    let none = ampoule(&["test", "--list", "--filter", "x", &good]);
    assert_eq!(none.status.code(), Some(2), "{none:?}");

    // What is printed can be run, and says the same.
    let dry = ampoule(&["test", "--dry-run", "--set", "vm.cpus=3", &good]);
    assert_eq!(dry.status.code(), Some(0), "{dry:?}");
    let text = stdout(&dry);
    assert!(
        text.contains("cpus = 3\n") && text.contains("forbid-defaults = false"),
        "{text}"
    );
    let again = directory.file("again.toml", &text);
    let dry = ampoule(&["test", "--dry-run", &again]);
    let body = |text: &str| {
        text.lines()
            .skip(1)
            .map(|it| it.to_owned() + "\n")
            .collect::<String>()
    };
    assert_eq!(body(&stdout(&dry)), body(&text));

    let bad = directory.file(
        "bad.toml",
        format!("nam = \"x\"\n[vm]\nkernal = \"k\"\nkernel = \"k\"\n{step}"),
    );
    let wrong = ampoule(&["test", &good, &bad]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    assert_eq!(stdout(&wrong), "");
    assert_eq!(
        stderr(&wrong),
        format!(
            "error: {bad}:1:1: unknown key \"nam\"\nhelp: did you mean \"name\"?\n\
             error: {bad}:3:1: unknown key \"kernal\"\nhelp: did you mean \"kernel\"?\n"
        )
    );

    let schema = ampoule(&["test", "--schema"]);
    assert_eq!(schema.status.code(), Some(0));
    let schema: serde_json::Value = serde_json::from_str(&stdout(&schema)).unwrap();
    assert!(schema["properties"]["step"].is_object());
}
