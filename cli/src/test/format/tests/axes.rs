//! The matrix, keys set from outside, and templates.

use super::*;

#[test]
fn a_matrix_is_a_product() {
    let all = scenarios(&format!(
        "[matrix]\n\"vm.memory\" = [\"512M\", \"1G\"]\nkernel = [{{ name = \"6.1\", vm.kernel = \"a\" }}, {{ name = \"6.12\", vm.kernel = \"b\", tags = [\"new\"] }}]\n\
         exclude = [{{ kernel = \"6.1\", \"vm.memory\" = \"1G\" }}]\n[vm]\nappend = \"m={{{{matrix.memory}}}} k={{{{matrix.kernel}}}}\"\n{STEP}"
    ));
    let names: Vec<&str> = all.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "a[memory=512M,kernel=6.1]",
            "a[memory=512M,kernel=6.12]",
            "a[memory=1G,kernel=6.12]"
        ]
    );
    assert_eq!(
        all[1].cell,
        [
            ("memory".into(), "512M".into()),
            ("kernel".into(), "6.12".into())
        ]
    );
    assert!(all[2].vm.kernel.as_ref().unwrap().ends_with("b"));
    assert_eq!(all[2].vm.memory, MemorySize::mib(1024));
    assert_eq!(all[2].vm.append.as_deref(), Some("m=1G k=6.12"));
    assert_eq!(
        (&*all[0].tags, &*all[2].tags),
        (&[][..], &["new".to_owned()][..])
    );
}

#[test]
fn values_of_axes_are_called_as_short_as_can_be() {
    let names = |matrix: &str| {
        let all = scenarios(&format!("{MACHINE}[matrix]\n{matrix}\n"));
        let names: Vec<String> = all.into_iter().map(|it| it.name).collect();
        names.join(" ")
    };
    assert_eq!(
        names("vm.kernel = [\"x/k1\", \"x/k2\"]"),
        "a[kernel=k1] a[kernel=k2]"
    );
    assert_eq!(
        names("vm.kernel = [\"x/k\", \"y/k\"]"),
        "a[kernel=x/k] a[kernel=y/k]"
    );
    assert_eq!(names("vm.cpus = [1, 2]"), "a[cpus=1] a[cpus=2]");
    assert_eq!(
        names("vm.rng = [true]\nmode = [\"{{env.DOTS}}\", 1.5]"),
        "a[rng=true,mode=a.b] a[rng=true,mode=1.5]"
    );
    assert_eq!(
        names("vm.limits.log = [\"1M\"]\nlog = [{ name = \"x\" }]"),
        "a[vm.limits.log=1M,log=x]"
    );
    assert_eq!(names("timeout = [\"1m\"]"), "a[timeout=1m]");
}

#[test]
fn what_is_wrong_with_a_matrix_is_told() {
    for (matrix, start) in [
        (
            "memory = [\"1G\"]",
            "a.toml:6:1: the axis \"memory\" sets no key\ndid you mean \"vm.memory\"?",
        ),
        (
            "image = [\"x\"]",
            "a.toml:6:1: the axis \"image\" sets no key\ndid you mean \"run.image\"?",
        ),
        (
            "vn.memory = [\"1G\"]",
            "a.toml:6:4: the axis \"vn.memory\" sets no key\nknown are vm, run",
        ),
        ("x = []", "a.toml:6:5: the axis \"x\" is empty"),
        (
            "x = 1",
            "a.toml:6:5: the axis \"x\" is an array of values, not a value of type integer",
        ),
        ("x = [1, 1]", "a.toml:6:9: the axis \"x\" has \"1\" twice"),
        (
            "x = [[1]]",
            "a.toml:6:6: a value of the axis \"x\" is a string,",
        ),
        (
            "x = [{ vm.cpus = 1 }]",
            "a.toml:6:6: a value of an axis that is a table has a name",
        ),
        (
            "x = [{ name = \"y\", tag = 1 }]",
            "a.toml:6:20: unknown key \"tag\"\ndid you mean \"tags\"?",
        ),
        (
            "x = [{ name = \"y\", template = true }]",
            "a.toml:6:20: template cannot be set by a matrix",
        ),
        (
            "x = [\"{{env.NO}}\"]",
            "a.toml:6:6: the environment has no variable NO",
        ),
        (
            "x = [1]\nexclude = [{ y = 1 }]",
            "a.toml:7:14: the matrix has no axis \"y\"",
        ),
        (
            "x = [10, 20]\nexclude = [{ x = 21 }]",
            "a.toml:7:18: the axis \"x\" has no value \"21\"\nknown are 10, 20",
        ),
        (
            "x = [1]\nexclude = [{}]",
            "a.toml:7:12: a cell to exclude that names no axis is all of them",
        ),
        (
            "x = [1]\nexclude = [{ x = 1 }]",
            "a.toml:5:2: exclude leaves no cell of the matrix",
        ),
        (
            "vm.cpus = [1, \"x\"]",
            "a.toml:6:15: invalid type: string \"x\", expected u32 (in cpus=x)",
        ),
        (
            "vm.cpus = [1, 0]",
            "a.toml:1:2: [vm] is no machine: a VM has 1 to 254 vCPUs, not 0 (in cpus=0)",
        ),
    ] {
        let told = complaint(&format!("{MACHINE}[matrix]\n{matrix}\n"));
        let start = start.replace("254", &ampoule_vmm::config::MAX_CPUS.to_string());
        assert!(told.starts_with(&start), "{told}\n{start}");
    }
    let axis = |name: &str| {
        format!(
            "{name} = [{}]\n",
            (0..101).map(|it| format!("{it},")).collect::<String>()
        )
    };
    let told = complaint(&format!("{MACHINE}[matrix]\n{}{}", axis("x"), axis("y")));
    assert!(
        told.starts_with("a.toml:5:2: the matrix has more than 10000 cells"),
        "{told}"
    );
}

#[test]
fn what_is_wrong_in_all_cells_names_none() {
    let told = complaint(&format!(
        "{MACHINE}[matrix]\nvm.cpus = [1, 2]\n[run]\nimag = \"x\"\nimage = \"debian\"\n"
    ));
    assert_eq!(
        told,
        "a.toml:8:1: unknown key \"imag\"\ndid you mean \"image\"?"
    );
}

#[test]
fn keys_are_set_from_outside() {
    let folder = Folder::new(&[(
        "a.toml",
        &format!(
            "[vm]\nkernel = \"k\"\ncpus = 2\n[matrix]\nvm.cpus = [3, 4]\nx = [{{ name = \"y\", vm.memory = \"1G\" }}]\n{STEP}"
        ),
    )]);
    let all = folder
        .load(
            &["a.toml"],
            &[
                "vm.cpus=5",
                "vm.initrd=i.cpio",
                "vm.memory=2G",
                "vm.append=\"a b\"",
                "tags=[\"t\"]",
                "vm.cmdline={{env.DOTS}}",
            ],
        )
        .unwrap();
    // An axis of a key that is set is none.
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].name, "a[x=y]");
    let vm = &all[0].vm;
    assert_eq!((vm.cpus, vm.memory), (5, MemorySize::mib(2048)));
    assert_eq!(vm.append.as_deref(), Some("a b"));
    assert_eq!(vm.cmdline.as_deref(), Some("a.b"));
    assert_eq!(
        vm.initrd,
        Some(std::env::current_dir().unwrap().join("i.cpio"))
    );
    assert_eq!(all[0].tags, ["t"]);
    let all = folder.load(&["a.toml"], &["matrix.vm.cpus=[6]"]).unwrap();
    assert_eq!(all[0].vm.cpus, 6);
    for (set, start) in [
        ("vm.cpus", "--set vm.cpus: it is no KEY=VALUE"),
        (
            "vm.cpsu=1",
            "--set vm.cpsu=1: unknown key \"cpsu\"\ndid you mean \"cpus\"?",
        ),
        (
            "vn.cpus=1",
            "--set vn.cpus=1: unknown key \"vn\"\nknown are description,",
        ),
        (
            "vm.cpus=two",
            "--set vm.cpus=two: invalid type: string \"two\"",
        ),
        ("name=x", "--set name=x: name is a file's own"),
        ("a b=x", "--set a b=x: "),
        ("=x", "--set =x: "),
    ] {
        let told = folder.complaints(&["a.toml"], &[set]);
        assert!(
            told.len() == 1 && told[0].starts_with(start),
            "{told:?}\n{start}"
        );
    }
}

#[test]
fn templates_are_put_in() {
    let folder = Folder::new(&[
        (
            "lib/base.toml",
            "template = true\n[vm]\nkernel = \"{{env.KERNELS}}/k\"\ninitrd = \"{{ file.dir }}/i\"\nappend = \"{{env.NO:-d}} {{env.EMPTY:-e}} {{env.EMPTY}} {{{{env.NO}} {{.x}} {{env.BRACES}}\"\n",
        ),
        ("a.toml", &format!("extends = \"lib/base.toml\"\n{STEP}")),
    ]);
    let all = folder.load(&["a.toml"], &[]).unwrap();
    let vm = &all[0].vm;
    assert_eq!(vm.kernel.as_deref(), Some(Path::new("/kernels/k")));
    assert_eq!(vm.initrd, Some(folder.path("lib/i")));
    assert_eq!(vm.append.as_deref(), Some("d e  {{env.NO}} {{.x}} {{x}}"));
    for (text, start) in [
        (
            "{{env.NO}}",
            "the environment has no variable NO\nset it, or give a default: {{env.NO:-DEFAULT}}",
        ),
        ("{{matrix.x}}", "the matrix has no axis \"x\""),
        ("{{file.dir:-x}}", "file.dir has a default"),
        ("{{version}}", "there is no {{version}} here"),
        ("{{file.name}}", "there is no {{file.name}} here"),
    ] {
        let told = complaint(&format!(
            "[vm]\nkernel = \"k\"\nappend = \"{text}\"\n{STEP}"
        ));
        assert!(told.starts_with(&format!("a.toml:3:10: {start}")), "{told}");
    }
}

#[test]
fn steps_name_what_was_captured() {
    let scenario = scenario(
        "[vm]\nkernel = \"k\"\n[matrix]\nx = [\"a+b\"]\n\
         [[step]]\nexpect = { regex = 'v(?P<version>\\d+) (?<rest>.*) {{matrix.x}}' }\n\
         [[step]]\nrun = \"echo {{version}} {{env.BRACES}} {{{{rest}}\"\nstdout = [{ regex = '^{{version}}(?P<more>x)$' }, \"{{rest}}\"]\n\
         [[step]]\nsend = \"{{more}} {{matrix.x}}\"\n",
    );
    let regex = |text: &str| Pattern::Regex(text.into());
    let Action::Expect { pattern, .. } = &scenario.steps[0].action else {
        panic!("{scenario:?}")
    };
    // What is put into an expression is a text.
    assert_eq!(*pattern, regex(r"v(?P<version>\d+) (?<rest>.*) a\+b"));
    let Action::Run {
        command, stdout, ..
    } = &scenario.steps[1].action
    else {
        panic!("{scenario:?}")
    };
    let expected = "echo {{version}} {{{{x}} {{{{rest}}";
    assert_eq!(*command, RunCommand::Shell(expected.into()));
    assert_eq!(
        *stdout,
        [
            regex("^{{version}}(?P<more>x)$"),
            Pattern::Literal("{{rest}}".into())
        ]
    );
    let captures = [("version", "6"), ("rest", "r")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    assert_eq!(fill(expected, &captures.into()), "echo 6 {{x}} {{rest}}");
    let Action::Send { text, .. } = &scenario.steps[2].action else {
        panic!("{scenario:?}")
    };
    assert_eq!(text, "{{more}} a+b");
}

#[test]
fn captures_are_known_before() {
    let told = step_complaint("send = \"{{version}}\"");
    assert!(
        told.starts_with(
            "a.toml:9:8: no earlier step captures {{version}}\na capture is a named group"
        ),
        "{told}"
    );
    // A step does not know its own.
    let told = step_complaint("expect = { regex = '(?P<v>x){{v}}' }");
    assert!(
        told.starts_with("a.toml:9:20: no earlier step captures {{v}}"),
        "{told}"
    );
    let told =
        step_complaint("expect = { regex = '(?P<version>x)' }\n[[step]]\nsend = \"{{verison}}\"");
    assert!(told.contains("did you mean \"version\"?"), "{told}");
    let told =
        step_complaint("expect = { regex = '(?P<v>x)' }\n[[step]]\nsnapshot-console = \"{{v}}\"");
    assert!(
        told.starts_with("a.toml:11:20: there is no {{v}} here"),
        "{told}"
    );
}
