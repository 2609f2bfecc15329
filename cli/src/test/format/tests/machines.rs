//! The machine, and the command in it.

use super::*;

#[test]
fn a_machine_is_what_the_library_takes() {
    for (text, start) in [
        ("", "a.toml:1:1: the scenario names nothing to boot"),
        (
            "[vm]\ncpus = 2\n",
            "a.toml:1:2: the scenario names nothing to boot",
        ),
        (
            "[vm]\nkernel = \"k\"\nmemory = \"1M\"\n",
            "a.toml:1:2: [vm] is no machine: 1M of memory is out of range",
        ),
        (
            "[vm]\nkernel = \"k\"\ntimeline = \"-\"\n",
            "a.toml:3:1: timeline is no key of [vm]\nthe results",
        ),
        (
            "[vm]\nkernel = \"k\"\nvsock = { cid = 3 }\n",
            "a.toml:3:9: vsock has no socket",
        ),
        (
            "[vm]\ndisk = [{ path = \"d\" }]\ninitrd = \"i\"\n",
            "a.toml:1:2: the scenario names nothing to boot",
        ),
        (
            "[vm]\nkernel = \"k\"\n[[vm.disk]]\npath = \"d\"\nformt = \"raw\"\n",
            "a.toml:5:1: unknown key \"formt\"\ndid you mean \"format\"?",
        ),
        (
            "[vm]\ninitrd = \"i\"\n[run]\nimage = \"debian\"\n",
            "a.toml:3:2: --initrd is for a VM without a command",
        ),
    ] {
        let told = complaint(&format!("{text}{STEP}"));
        assert!(told.starts_with(start), "{told}\n{start}");
    }
    // A kernel is found for what boots from a disk, and for commands.
    scenario(&format!("[vm]\ndisk = [{{ path = \"d\" }}]\n{STEP}"));
    scenario(&format!("[run]\nimage = \"debian\"\n{STEP}"));
    let console = scenario(&format!(
        "[vm]\nkernel = \"file:k\"\nconsole = \"file:l\"\n{STEP}"
    ));
    assert!(console.vm.kernel.unwrap().ends_with("file:k"));
    assert!(matches!(console.vm.console, Some(ConsoleConfig::File(path)) if path.is_absolute()));
    let told = complaint(&format!(
        "[vm]\nkernel = \"k\"\nserial = \"file:l\"\n{STEP}"
    ));
    assert!(
        told.starts_with("a.toml:3:1: the serial port is the scenario's"),
        "{told}"
    );
    // What is missing in a file that is not there is not missed.
    let told = complaint(&format!("extends = \"no.toml\"\n{STEP}"));
    assert!(told.contains("cannot read scenario"), "{told}");
}

#[test]
fn a_command_is_what_run_takes() {
    let folder = Folder::new(&[
        (
            "t/run.toml",
            "[run]\nimage = \"../image.tar\"\ncommand = [\"sh\", \"-c\", \"x\"]\nenv = [\"A=-b\", \"C=d\"]\npublish = \"8080:80\"\n\
            volume = [\"src:/src:ro\", \"/abs:/x\"]\ncopy = [\"c:/c\"]\ncopy-out = \"/out:out\"\nmax-copy-size = 1048576\noverlay = \"path=o,,1.img,size=1G\"\nread-only = false\nhostname = \"h\"\npull = \"never\"\n[[step]]\nwait-exit = \"any\"\n",
        ),
        ("image", ""),
        (
            "t/base.toml",
            "template = true\n[run]\nroot = \"tree\"\nread-only = true\n",
        ),
        ("root.toml", &format!("extends = \"t/base.toml\"\n{STEP}")),
        ("named.toml", &format!("[run]\nimage = \"image\"\n{STEP}")),
        (
            "registry.toml",
            &format!("[run]\nimage = \"debian:12\"\n{STEP}"),
        ),
    ]);
    let spec = |name: &str| folder.load(&[name], &[]).unwrap().remove(0).run.unwrap();
    let path = |name: &str| folder.path(name).display().to_string();
    let run = spec("t/run.toml");
    let expected = [
        format!("--copy={}:/c", path("t/c")),
        format!("--copy-out=/out:{}", path("t/out")),
        "--env=A=-b".into(),
        "--env=C=d".into(),
        "--hostname=h".into(),
        "--max-copy-size=1048576".into(),
        format!("--overlay=path={},size=1G", path("t/o,,1.img")),
        "--publish=8080:80".into(),
        "--pull=never".into(),
        format!("--volume={}:/src:ro", path("t/src")),
        "--volume=/abs:/x".into(),
        path("t/../image.tar"),
    ];
    assert_eq!(run.arguments, expected);
    assert_eq!(run.command, ["sh", "-c", "x"]);
    let parsed = run::parse(&run).unwrap();
    assert_eq!(parsed.env, ["A=-b", "C=d"]);
    assert_eq!(parsed.command, ["sh", "-c", "x"]);
    let root = spec("root.toml");
    let expected = [
        "--read-only".to_owned(),
        format!("--root={}", path("t/tree")),
    ];
    assert_eq!(root.arguments, expected);
    // Without a command there is none.
    assert!(run::parse(&root).unwrap().command.is_empty());
    assert_eq!(spec("named.toml").arguments, [path("image")]);
    assert_eq!(spec("registry.toml").arguments, ["debian:12"]);
}

#[test]
fn what_is_wrong_with_a_command_is_told() {
    for (run, start) in [
        (
            "imag = \"x\"",
            "a.toml:3:1: unknown key \"imag\"\ndid you mean \"image\"?",
        ),
        (
            "memory = \"1G\"",
            "a.toml:3:1: memory is about the machine, not about what runs in it\nwrite it in [vm]: memory = …",
        ),
        ("kernel = \"k\"", "a.toml:3:1: kernel is about the machine"),
        (
            "timeline = \"-\"",
            "a.toml:3:1: timeline is for a run from the command line\nthe results",
        ),
        (
            "print-config = true",
            "a.toml:3:1: print-config is for a run from the command line",
        ),
        (
            "tty = true",
            "a.toml:3:1: tty is for a person at a terminal",
        ),
        (
            "interactive = true",
            "a.toml:3:1: interactive is for a person at a terminal",
        ),
        (
            "publish = [\"8080:80\", \"80\"]",
            "a.toml:3:23: invalid value '80' for '--publish",
        ),
        (
            "pull = \"nevr\"",
            "a.toml:3:8: invalid value 'nevr' for '--pull",
        ),
        (
            "read-only = \"yes\"",
            "a.toml:3:13: read-only is true or false",
        ),
        (
            "hostname = [\"a\"]",
            "a.toml:3:12: hostname is a string, not a value of type array",
        ),
        (
            "command = \"a b\"",
            "a.toml:3:11: command is an array of words",
        ),
        ("command = []", "a.toml:3:11: command is empty"),
        (
            "max-copy-size = \"1G\"",
            "a.toml:1:2: the following required arguments were not provided",
        ),
        (
            "file = \"/no/such\"",
            "a.toml:3:8: invalid value '/no/such' for '--file",
        ),
        (
            "root = \"/\"",
            "a.toml:1:2: --root runs a command over a directory, and there is an IMAGE",
        ),
    ] {
        let told = complaint(&format!("[run]\nimage = \"debian\"\n{run}\n{STEP}"));
        assert!(told.starts_with(start), "{told}\n{start}");
    }
    let told = complaint(&format!("[run]\nenv = [\"A=b\"]\n{STEP}"));
    assert!(
        told.starts_with("a.toml:1:2: nothing in [run] says what to run a command from"),
        "{told}"
    );
    let told = complaint(&format!("[run]\nimage = \"NoSuch\"\n{STEP}"));
    assert!(
        told.starts_with("a.toml:2:9: \"NoSuch\" is neither a file"),
        "{told}"
    );
}
