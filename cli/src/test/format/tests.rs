//! The format through its door: files in a folder, and what becomes of them.

use std::fs;
use std::path::{Path, PathBuf};

use ampoule_vmm::config::{ConsoleConfig, MemorySize};
use ampoule_vmm::test::FORBIDDEN;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::test::scenario::{
    Action, DiskEffect, DiskFault, DiskOp, EndKind, NetEffect, NetFault, Pattern, RunCommand,
    Stream, When,
};

/// A folder with files, `a.toml` and so on.
struct Folder(TempDir);

const STEP: &str = "[[step]]\nwait-exit = \"any\"\n";
const MACHINE: &str = "[vm]\nkernel = \"k\"\n[[step]]\nwait-exit = \"any\"\n";

fn environment(name: &str) -> Option<String> {
    match name {
        "KERNELS" => Some("/kernels".into()),
        "BRACES" => Some("{{x}}".into()),
        "DOTS" => Some("a.b".into()),
        "EMPTY" => Some(String::new()),
        _ => None,
    }
}

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn load(&self, names: &[&str], sets: &[&str]) -> Result<Vec<Scenario>, Vec<Failure>> {
        let paths: Vec<PathBuf> = names.iter().map(|it| self.path(it)).collect();
        let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
        load_with(&paths, &sets, environment)
    }

    /// All complaints, with names for paths.
    fn complaints(&self, names: &[&str], sets: &[&str]) -> Vec<String> {
        let complaints = self.load(names, sets).unwrap_err();
        let folder = format!("{}/", self.0.path().display());
        let told = complaints.into_iter().map(|it| match it.help {
            Some(help) => format!("{}\n{help}", it.message),
            None => it.message,
        });
        told.map(|it| it.replace(&folder, "")).collect()
    }
}

/// The scenarios of one file.
fn scenarios(text: &str) -> Vec<Scenario> {
    let folder = Folder::new(&[("a.toml", text)]);
    match folder.load(&["a.toml"], &[]) {
        Ok(scenarios) => scenarios,
        Err(complaints) => panic!("{text}\n{complaints:?}"),
    }
}

fn scenario(text: &str) -> Scenario {
    let mut all = scenarios(text);
    assert_eq!(all.len(), 1);
    all.remove(0)
}

/// The action of a step of a machine with a command, a disk and a network.
fn action(step: &str) -> Action {
    let mut scenario = scenario(&format!("{RICH}[[step]]\n{step}\n"));
    scenario.steps.remove(0).action
}

const RICH: &str = "[vm]\nkernel = \"k\"\ndisk = [{ path = \"d\" }]\nnet = [{ user = true, id = \"lan\" }]\n\
                    [run]\nimage = \"debian:12\"\ncommand = [\"x\"]\n";

/// All that is wrong with one file.
fn complaints(text: &str) -> Vec<String> {
    Folder::new(&[("a.toml", text)]).complaints(&["a.toml"], &[])
}

/// The only thing that is.
fn complaint(text: &str) -> String {
    let mut all = complaints(text);
    assert_eq!(all.len(), 1, "{all:#?}");
    all.remove(0)
}

/// The only thing that is wrong with a step.
fn step_complaint(step: &str) -> String {
    complaint(&format!("{RICH}[[step]]\n{step}\n"))
}

#[test]
fn a_file_is_a_scenario() {
    let scenario = scenario(
        "name = \"boot\"\ndescription = \"it boots\"\ntags = [\"slow\", \"slow\"]\ntimeout = \"2m\"\nstep-timeout = \"30s\"\n\
         forbid = [\"x\"]\nforbid-defaults = false\nallow = [{ regex = \"y+\" }]\n\
         [vm]\nkernel = \"/k\"\nmemory = \"1G\"\n[[step]]\nexpect = \"login:\"\nwithin = \"10s\"\nname = \"prompt\"\n",
    );
    assert_eq!(scenario.name, "boot");
    assert_eq!(scenario.description.as_deref(), Some("it boots"));
    assert_eq!(scenario.tags, ["slow"]);
    assert_eq!(scenario.timeout.to_string(), "2m");
    assert_eq!(scenario.step_timeout.to_string(), "30s");
    assert_eq!(scenario.forbid, [Pattern::Literal("x".into())]);
    assert_eq!(scenario.allow, [Pattern::Regex("y+".into())]);
    assert_eq!(scenario.vm.memory, MemorySize::mib(1024));
    assert_eq!(scenario.vm.kernel.as_deref(), Some(Path::new("/k")));
    assert_eq!((&scenario.run, &*scenario.cell), (&None, &[][..]));
    assert!(scenario.file.is_absolute() && scenario.file.ends_with("a.toml"));
    let step = &scenario.steps[0];
    assert_eq!(step.title(), "prompt");
    assert_eq!(step.within.unwrap().to_string(), "10s");
    assert_eq!(step.line, 13);
}

#[test]
fn what_is_not_said_is_usual() {
    let scenario = scenario(MACHINE);
    assert_eq!(scenario.name, "a");
    assert_eq!(scenario.timeout.to_string(), "5m");
    assert_eq!(scenario.step_timeout.to_string(), "1m");
    assert_eq!(scenario.forbid.len(), FORBIDDEN.len());
    assert_eq!(
        (scenario.steps[0].within, &scenario.steps[0].name),
        (None, &None)
    );
    // What is forbidden besides comes behind.
    let more = self::scenario(&format!("forbid = [\"x\"]\n{MACHINE}"));
    assert_eq!(more.forbid.len(), FORBIDDEN.len() + 1);
    assert_eq!(more.forbid.last(), Some(&Pattern::Literal("x".into())));
}

#[test]
fn all_mistakes_are_told_in_their_order() {
    let folder = Folder::new(&[
        (
            "a.toml",
            "zzz = 1\n[vm]\nkernal = \"x\"\nmemory = \"12X\"\ncpus = \"two\"\nkernel = \"k\"\n[[step]]\nexpct = \"x\"\n",
        ),
        ("b.toml", "timeout = 7\n[vm]\nkernel = \"k\"\n"),
        ("c.toml", "x =\n"),
    ]);
    let all = folder.complaints(&["a.toml", "b.toml", "c.toml"], &[]);
    let starts = [
        "a.toml:1:1: unknown key \"zzz\"\nknown are extends,",
        "a.toml:3:1: unknown key \"kernal\"\ndid you mean \"kernel\"?",
        "a.toml:4:10: \"12X\" is not a size",
        "a.toml:5:8: invalid type: string \"two\"",
        "a.toml:8:1: unknown key \"expct\"\ndid you mean \"expect\"?",
        "b.toml:1:1: the scenario has no step",
        "b.toml:1:11: timeout is a string, not a value of type integer",
        "c.toml:1:4: ",
    ];
    assert_eq!(all.len(), starts.len(), "{all:#?}");
    for (text, start) in all.iter().zip(starts) {
        assert!(text.starts_with(start), "{text}\n{start}");
    }
}

#[test]
fn what_is_wrong_at_the_top_is_told() {
    for (text, start) in [
        (
            "nmae = \"x\"\n",
            "a.toml:1:1: unknown key \"nmae\"\ndid you mean \"name\"?",
        ),
        (
            "name = \"a b\"\n",
            "a.toml:1:8: \"a b\" is no name of a scenario\nname = \"…\"; names have letters",
        ),
        (
            "name = 7\n",
            "a.toml:1:8: name is a string, not a value of type integer",
        ),
        ("tags = [\"a b\"]\n", "a.toml:1:9: \"a b\" is no tag"),
        (
            "tags = \"a\"\n",
            "a.toml:1:8: tags is an array, not a value of type string",
        ),
        (
            "timeout = \"90\"\n",
            "a.toml:1:11: timeout: \"90\" is not a duration",
        ),
        (
            "step-timeout = \"0s\"\n",
            "a.toml:1:16: step-timeout is longer than nothing",
        ),
        (
            "forbid = [{ regex = \"a(\" }]\n",
            "a.toml:1:21: the regular expression cannot be used: unclosed group",
        ),
        (
            "forbid = [{ regx = \"a\", regex = \"b\" }]\n",
            "a.toml:1:13: unknown key \"regx\"\ndid you mean \"regex\"?",
        ),
        (
            "forbid = [{}]\n",
            "a.toml:1:11: a pattern of forbid that is a table has a regex",
        ),
        (
            "forbid = [\"\"]\n",
            "a.toml:1:11: a pattern of forbid is empty",
        ),
        (
            "forbid = [\"{{version}}\"]\n",
            "a.toml:1:11: there is no {{version}} here\nknown are env.NAME",
        ),
        (
            "forbid-defaults = 1\n",
            "a.toml:1:19: forbid-defaults is true or false, not a value of type integer",
        ),
        (
            "template = 1\n",
            "a.toml:1:12: template is true or false, not a value of type integer",
        ),
        ("template = true\n", "a.toml:1:12: the file is a template"),
        (
            "tags = []\ntags = []\n",
            "a.toml:2:1: the key \"tags\" is there twice",
        ),
        (
            "extends = 7\n",
            "a.toml:1:11: extends is a path or several, not a value of type integer",
        ),
        ("extends = \"\"\n", "a.toml:1:11: extends is an empty path"),
        (
            "extends = \"no.toml\"\n",
            "a.toml:1:11: cannot read scenario \"no.toml\": no such file or directory",
        ),
    ] {
        let told = complaint(&format!("{text}{MACHINE}"));
        assert!(told.starts_with(start), "{told}\n{start}");
    }
    assert!(
        complaint("[vm]\nkernel = \"k\"\n").starts_with("a.toml:1:1: the scenario has no step")
    );
    assert!(
        complaint("step = []\n[vm]\nkernel = \"k\"\n")
            .starts_with("a.toml:1:1: the scenario has no step")
    );
    assert!(complaint(&format!("vm = 1\n{STEP}")).starts_with("a.toml:1:6: vm is a table"));
}

#[test]
fn files_that_cannot_be_read_are_told() {
    let folder = Folder::new(&[("empty/x.txt", "")]);
    let told = folder.complaints(&["no.toml", "empty"], &[]);
    assert_eq!(
        told,
        [
            "cannot read scenario \"no.toml\": no such file or directory",
            &format!(
                "there is no scenario in \"{}\"\nscenarios are files whose names end in .toml",
                folder.path("empty").display()
            ),
        ]
        .map(|it| it.replace(&format!("{}/", folder.0.path().display()), ""))
    );
    fs::write(folder.path("bytes.toml"), b"\xff\xfe").unwrap();
    let told = folder.complaints(&["bytes.toml"], &[]);
    assert_eq!(
        told,
        ["cannot read scenario \"bytes.toml\": it is not text in UTF-8"]
    );
    fs::write(folder.path("large.toml"), vec![b'#'; (1 << 20) + 1]).unwrap();
    let told = folder.complaints(&["large.toml"], &[]);
    assert_eq!(
        told,
        ["cannot read scenario \"large.toml\": it is larger than 1 MiB"]
    );
    let endless = load(&["/dev/zero".into()], &[]).unwrap_err();
    assert!(endless[0].message.ends_with("larger than 1 MiB"));
}

#[test]
fn directories_hold_scenarios() {
    let folder = Folder::new(&[
        ("t/b.toml", MACHINE),
        ("t/a.toml", "extends = \"deep/base.toml\"\n"),
        ("t/deep/base.toml", &format!("template = true\n{MACHINE}")),
        ("t/deep/c.toml", MACHINE),
        ("t/d.txt", "no TOML"),
    ]);
    std::os::unix::fs::symlink("..", folder.path("t/deep/up")).unwrap();
    let names = |it: Vec<Scenario>| it.into_iter().map(|it| it.name).collect::<Vec<_>>();
    // A file that is named besides is one scenario, still.
    let loaded = folder.load(&["t", "t/deep/c.toml"], &[]).unwrap();
    assert_eq!(names(loaded), ["a", "b", "c"]);
    let told = folder.complaints(&["t/deep/base.toml"], &[]);
    assert!(
        told[0].starts_with("t/deep/base.toml:1:12: the file is a template"),
        "{told:?}"
    );
}

#[test]
fn a_name_is_one_scenarios() {
    let folder = Folder::new(&[
        ("x/boot.toml", MACHINE),
        ("y/z.toml", &format!("name = \"boot\"\n{MACHINE}")),
    ]);
    let told = folder.complaints(&["x", "y"], &[]);
    assert_eq!(
        told,
        [
            "y/z.toml:1:8: there are two scenarios named \"boot\": the other is at x/boot.toml:1:1\ngive one another name: name = \"…\""
        ]
    );
}

#[test]
fn files_extend_files() {
    let folder = Folder::new(&[
        (
            "a.toml",
            "extends = [\"lib/base.toml\", \"more.toml\"]\ntags = [\"own\"]\n[vm]\ninitrd = \"i\"\n",
        ),
        (
            "lib/base.toml",
            "extends = \"root.toml\"\nname = \"base\"\ntemplate = true\ntags = [\"base\"]\n[vm]\nkernel = \"k\"\ncpus = 2\n[[vm.disk]]\npath = \"d\"\n",
        ),
        (
            "lib/root.toml",
            &format!("timeout = \"1m\"\n[vm]\ncpus = 3\nmemory = \"1G\"\n{STEP}"),
        ),
        ("more.toml", "[vm]\ncpus = 4\n"),
    ]);
    let all = folder.load(&["a.toml"], &[]).unwrap();
    let scenario = &all[0];
    // Names and templates are not inherited; the last one that says something counts.
    assert_eq!(scenario.name, "a");
    assert_eq!(scenario.tags, ["own"]);
    assert_eq!(scenario.timeout.to_string(), "1m");
    assert_eq!(
        (scenario.vm.cpus, scenario.vm.memory),
        (4, MemorySize::mib(1024))
    );
    // Paths begin where they are written.
    assert_eq!(scenario.vm.kernel, Some(folder.path("lib/k")));
    assert_eq!(scenario.vm.initrd, Some(folder.path("i")));
    assert_eq!(scenario.vm.disk[0].path, folder.path("lib/d"));
}

#[test]
fn a_mistake_is_told_where_it_is_made_and_once() {
    let folder = Folder::new(&[
        ("a.toml", "extends = \"base.toml\"\n"),
        ("b.toml", "extends = \"base.toml\"\n"),
        (
            "base.toml",
            &format!("template = true\n[vm]\nkernel = \"k\"\ncpus = \"x\"\n{STEP}"),
        ),
    ]);
    let told = folder.complaints(&["a.toml", "b.toml"], &[]);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].starts_with("base.toml:4:8: invalid type"),
        "{told:?}"
    );
}

#[test]
fn circles_and_long_chains_are_refused() {
    let folder = Folder::new(&[
        ("a.toml", &format!("extends = \"b.toml\"\n{MACHINE}")),
        ("b.toml", "extends = \"a.toml\"\n"),
        (
            "self.toml",
            &format!("extends = \"./self.toml\"\n{MACHINE}"),
        ),
    ]);
    let told = folder.complaints(&["a.toml"], &[]);
    assert_eq!(
        told,
        ["b.toml:1:11: a file extends itself: a.toml -> b.toml -> a.toml"]
    );
    let told = folder.complaints(&["self.toml"], &[]);
    assert_eq!(
        told,
        ["self.toml:1:11: a file extends itself: self.toml -> self.toml"]
    );
    for index in 0..40 {
        let text = format!("extends = \"{}.toml\"\n{MACHINE}", index + 1);
        fs::write(folder.path(&format!("{index}.toml")), text).unwrap();
    }
    fs::write(folder.path("40.toml"), MACHINE).unwrap();
    let told = folder.complaints(&["0.toml"], &[]);
    assert_eq!(
        told,
        ["16.toml:1:11: more than 16 files extend each other in a row"]
    );
    assert!(folder.load(&["24.toml"], &[]).is_ok());
    let many = format!("extends = [{}]\n{MACHINE}", "\"x\",".repeat(33));
    assert_eq!(
        complaint(&many),
        "a.toml:1:11: a scenario extends 32 files at most"
    );
}

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

#[test]
fn every_action_is_read() {
    let literal = |text: &str| Pattern::Literal(text.into());
    let regex = |text: &str| Pattern::Regex(text.into());
    let console = |pattern| Action::Expect {
        pattern,
        on: Stream::Console,
    };
    assert_eq!(action("expect = \"a\""), console(literal("a")));
    assert_eq!(
        action("expect = { regex = 'a$' }\non = \"console\""),
        console(regex("a$"))
    );
    for (name, on) in [("output", Stream::Output), ("log", Stream::Log)] {
        let pattern = literal("a");
        assert_eq!(
            action(&format!("expect = \"a\"\non = \"{name}\"")),
            Action::Expect { pattern, on }
        );
    }
    let sent = |echo| Action::Send {
        text: "a\n".into(),
        echo,
    };
    assert_eq!(action("send = \"a\\n\""), sent(false));
    assert_eq!(action("send = \"a\\n\"\necho = true"), sent(true));
    assert_eq!(
        action("run = \"a b\""),
        Action::Run {
            command: RunCommand::Shell("a b".into()),
            input: None,
            status: Some(0),
            stdout: vec![],
            stderr: vec![]
        }
    );
    assert_eq!(
        action(
            "run = [\"a\", \"\"]\nstatus = \"any\"\ninput = \"\"\nstdout = \"o\"\nstderr = [\"e\", { regex = 'f' }]"
        ),
        Action::Run {
            command: RunCommand::Words(vec!["a".into(), String::new()]),
            input: Some(String::new()),
            status: None,
            stdout: vec![literal("o")],
            stderr: vec![literal("e"), regex("f")],
        }
    );
    let url = "http://127.0.0.1:8080/".to_owned();
    assert_eq!(
        action("http = \"http://127.0.0.1:8080/\""),
        Action::Http {
            url: url.clone(),
            status: 200,
            body: vec![]
        }
    );
    assert_eq!(
        action("http = \"http://127.0.0.1:8080/\"\nstatus = 404\nbody = \"b\""),
        Action::Http {
            url,
            status: 404,
            body: vec![literal("b")]
        }
    );
    assert_eq!(
        action("tcp = \"127.0.0.1:22\"\nsend = \"s\"\nexpect = [\"e\"]"),
        Action::Tcp {
            address: "127.0.0.1:22".into(),
            send: Some("s".into()),
            expect: vec![literal("e")]
        }
    );
    let file = |write: Option<&str>, expect| Action::File {
        path: "/f".into(),
        write: write.map(Into::into),
        expect,
    };
    assert_eq!(action("file = \"/f\""), file(None, vec![]));
    assert_eq!(
        action("file = \"/f\"\nwrite = \"\""),
        file(Some(""), vec![])
    );
    assert_eq!(
        action("file = \"/f\"\ncontent = \"c\""),
        file(None, vec![literal("c")])
    );
    for (text, reason, status) in [
        ("wait-exit = \"power-off\"", Some(EndKind::PowerOff), None),
        ("wait-exit = \"any\"", None, None),
        (
            "wait-exit = \"any\"\nstatus = 3",
            Some(EndKind::Command),
            Some(3),
        ),
        (
            "wait-exit = \"command\"\nstatus = 0",
            Some(EndKind::Command),
            Some(0),
        ),
        (
            "wait-exit = \"triple-fault\"",
            Some(EndKind::TripleFault),
            None,
        ),
    ] {
        assert_eq!(action(text), Action::WaitExit { reason, status });
    }
    assert_eq!(action("pause = true"), Action::Pause);
    assert_eq!(action("power-button = true"), Action::PowerButton);
    assert_eq!(action("reset = true"), Action::Reset);
    assert_eq!(
        action("pause = true\n[[step]]\nresume = true"),
        Action::Pause
    );
    assert_eq!(
        action("snapshot-console = \"a.b\""),
        Action::SnapshotConsole { name: "a.b".into() }
    );
    assert_eq!(
        action("timeline = \"init\"\nat-most = 3\ntimes = \"t\"\nsince = \"s\""),
        Action::Timeline {
            mark: "init".into(),
            at_most: 3.0,
            than: "t".into(),
            since: Some("s".into())
        }
    );
}

#[test]
fn faults_are_read() {
    let delay = "10ms".parse().unwrap();
    let disk = |faults: &str| match action(&format!("disk-fault = \"disk0\"\nfaults = [{faults}]"))
    {
        Action::DiskFault { disk, faults } if disk == "disk0" => faults,
        other => panic!("{other:?}"),
    };
    assert_eq!(disk(""), []);
    let (op, when) = (DiskOp::Write, When::Every(1));
    let fault = |effect| DiskFault { op, when, effect };
    assert_eq!(
        disk(
            "{ op = \"write\", every = 1, fail = \"EIO\" }, { op = \"write\", every = 1, fail = 28 }, { op = \"write\", every = 1, delay = \"10ms\" }"
        ),
        [
            fault(DiskEffect::Fail(5)),
            fault(DiskEffect::Fail(28)),
            fault(DiskEffect::Delay(delay))
        ]
    );
    let net = action(
        "net-fault = \"lan\"\nfaults = [{ direction = \"from-guest\", nth = 2, effect = \"drop\" }, { direction = \"to-guest\", every = 3, delay = \"10ms\" }]",
    );
    let faults = vec![
        NetFault {
            from_guest: true,
            when: When::Nth(2),
            effect: NetEffect::Drop,
        },
        NetFault {
            from_guest: false,
            when: When::Every(3),
            effect: NetEffect::Delay(delay),
        },
    ];
    assert_eq!(
        net,
        Action::NetFault {
            net: "lan".into(),
            faults
        }
    );
}

#[test]
fn what_is_wrong_with_a_step_is_told() {
    for (step, start) in [
        (
            "within = \"1s\"",
            "8:1: the step has no action\nit has one of expect, send,",
        ),
        (
            "expect = \"a\"\nsend = \"b\"",
            "8:1: a step has one action, and this one has expect and send\nwrite a [[step]] for each",
        ),
        (
            "expect = \"a\"\nstatus = 3",
            "10:1: status does not belong to expect\nit belongs to run and http and wait-exit; with expect go on, within, name",
        ),
        (
            "expect = \"a\"\nwihtin = \"1s\"",
            "10:1: unknown key \"wihtin\"\ndid you mean \"within\"?",
        ),
        (
            "expect = \"a\"\nwithin = \"1\"",
            "10:10: within: \"1\" is not a duration",
        ),
        (
            "expect = \"a\"\non = \"consol\"",
            "10:6: \"consol\" is no value of on\ndid you mean \"console\"?",
        ),
        (
            "expect = 7",
            "9:10: expect is a pattern: a text, or { regex = '…' }",
        ),
        (
            "expect = { regex = '[' }",
            "9:20: the regular expression cannot be used: unclosed character class",
        ),
        ("send = \"\"", "9:8: send is empty"),
        ("send = \"a\"\necho = 1", "10:8: echo is true or false"),
        ("run = []", "9:7: run is empty"),
        (
            "run = [\"a\", 1]",
            "9:13: a word of run is a string, not a value of type integer",
        ),
        (
            "run = \"a\"\nstatus = 256",
            "10:10: status is 0 to 255, not 256",
        ),
        (
            "run = \"a\"\nstatus = \"0\"",
            "10:10: status is a number, or \"any\"",
        ),
        (
            "run = \"a\"\nstdout = [{ regex = '(' }]",
            "10:21: the regular expression",
        ),
        (
            "http = \"https://a/\"",
            "9:8: a check by https cannot be made",
        ),
        (
            "http = \"http://a/\"\nstatus = 99",
            "10:10: status is 100 to 599, not 99",
        ),
        (
            "tcp = \"127.0.0.1\"",
            "9:7: \"127.0.0.1\": there is no port",
        ),
        ("file = \"etc\"", "9:8: a path in the guest begins by a /"),
        (
            "file = \"/a\"\nwrite = \"\"\ncontent = \"\"",
            "11:1: a file is either written or read",
        ),
        (
            "wait-exit = \"poweroff\"",
            "9:13: \"poweroff\" is no value of wait-exit\ndid you mean \"power-off\"?",
        ),
        (
            "wait-exit = \"panic\"\nstatus = 1",
            "10:1: only a command has a status, panic has none",
        ),
        ("pause = false", "9:9: pause = false is no action"),
        ("reset = 1", "9:9: reset is true or false"),
        ("disk-fault = \"disk0\"", "9:1: the step has no faults"),
        (
            "disk-fault = \"disk1\"\nfaults = []",
            "9:1: the machine has no disk \"disk1\"\ndid you mean \"disk0\"?",
        ),
        (
            "net-fault = \"net0\"\nfaults = []",
            "9:1: the machine has no network \"net0\"\nknown are lan",
        ),
        (
            "disk-fault = \"disk0\"\nfaults = [{ op = \"wirte\", every = 1, fail = \"EIO\" }]",
            "10:18: \"wirte\" is no value of op\ndid you mean \"write\"?",
        ),
        (
            "disk-fault = \"disk0\"\nfaults = [{ op = \"write\", fail = \"EIO\" }]",
            "10:11: a fault has either nth or every",
        ),
        (
            "disk-fault = \"disk0\"\nfaults = [{ op = \"write\", nth = 0, fail = \"EIO\" }]",
            "10:33: nth is 1 or more, not 0",
        ),
        (
            "disk-fault = \"disk0\"\nfaults = [{ op = \"write\", nth = 1, fail = \"EOI\" }]",
            "10:43: \"EOI\" is no error that is known by its name\n",
        ),
        (
            "disk-fault = \"disk0\"\nfaults = [{ op = \"write\", nth = 1, fail = 134 }]",
            "10:43: fail is 1 to 133, not 134",
        ),
        (
            "disk-fault = \"disk0\"\nfaults = [{ op = \"write\", nth = 1, delay = \"11s\" }]",
            "10:44: a delay is 10s at most, not 11s",
        ),
        (
            "disk-fault = \"disk0\"\nfaults = [{ op = \"write\", nth = 1 }]",
            "10:11: a fault of a disk has either fail or delay",
        ),
        (
            "disk-fault = \"disk0\"\nfaults = [{ op = \"write\", nth = 1, fail = 5, efect = 1 }]",
            "10:46: unknown key \"efect\"",
        ),
        (
            "net-fault = \"lan\"\nfaults = [{ nth = 1, effect = \"drop\" }]",
            "10:11: the fault has no direction",
        ),
        (
            "net-fault = \"lan\"\nfaults = [{ direction = \"to-guest\", nth = 1, effect = \"drop\", delay = \"1s\" }]",
            "10:11: a fault of a network has either effect or delay",
        ),
        (
            "timeline = \"a\"\ntimes = \"b\"",
            "9:1: the step has no at-most",
        ),
        (
            "timeline = \"a\"\nat-most = 1",
            "9:1: the step has no times",
        ),
        (
            "timeline = \"a\"\nat-most = -1\ntimes = \"b\"",
            "10:11: at-most is a number above 0",
        ),
        (
            "timeline = \"a\"\nat-most = inf\ntimes = \"b\"",
            "10:11: at-most is a number above 0",
        ),
        (
            "snapshot-console = \"a/b\"",
            "9:20: \"a/b\" is no name of a snapshot",
        ),
    ] {
        let told = step_complaint(step);
        assert!(
            told.starts_with(&format!("a.toml:{start}")),
            "{step}\n{told}"
        );
    }
}

#[test]
fn steps_are_in_an_order_that_can_come_true() {
    let step = |it: &str| format!("{it}\n[[step]]\n");
    for (first, second, start) in [
        (
            "wait-exit = \"any\"",
            "run = \"a\"",
            "run comes after wait-exit",
        ),
        (
            "wait-exit = \"any\"",
            "file = \"/a\"",
            "file comes after wait-exit",
        ),
        (
            "wait-exit = \"any\"",
            "wait-exit = \"any\"",
            "wait-exit comes after wait-exit",
        ),
        (
            "wait-exit = \"any\"",
            "pause = true",
            "pause comes after wait-exit",
        ),
        (
            "pause = true",
            "pause = true",
            "the machine is paused already",
        ),
        (
            "pause = true",
            "run = \"a\"",
            "run wants something of the guest, which is paused",
        ),
        (
            "pause = true",
            "send = \"a\"\necho = true",
            "send wants something of the guest, which is paused",
        ),
        (
            "pause = true",
            "wait-exit = \"any\"",
            "wait-exit wants something of the guest, which is paused",
        ),
        ("send = \"a\"", "resume = true", "the machine is not paused"),
        (
            "snapshot-console = \"a\"",
            "snapshot-console = \"a\"",
            "there are two snapshots named a",
        ),
    ] {
        let told = step_complaint(&(step(first) + second));
        let line = 10 + first.matches('\n').count() + 1;
        assert!(
            told.starts_with(&format!("a.toml:{line}:1: {start}")),
            "{told}"
        );
    }
    for second in [
        "expect = \"a\"",
        "snapshot-console = \"a\"",
        "timeline = \"a\"\nat-most = 1\ntimes = \"b\"",
    ] {
        action(&(step("wait-exit = \"any\"") + second));
    }
    action(&(step("pause = true") + "send = \"a\""));
}

#[test]
fn steps_need_what_they_are_about() {
    for (step, start) in [
        (
            "expect = \"a\"\non = \"output\"",
            "there is no output to expect something on",
        ),
        (
            "run = \"a\"\ninput = \"b\"",
            "input is for commands that ampoule's init runs",
        ),
        ("wait-exit = \"command\"", "there is no command to end"),
        (
            "wait-exit = \"any\"\nstatus = 0",
            "there is no command to end",
        ),
        ("wait-exit = \"reset\"", "a reset does not end this machine"),
        (
            "disk-fault = \"disk0\"\nfaults = []",
            "the machine has no disk \"disk0\"\nit has no disk at all",
        ),
    ] {
        let text = format!("[vm]\nkernel = \"k\"\non-reboot = \"restart\"\n[[step]]\n{step}\n");
        let told = complaint(&text);
        assert!(told.starts_with(&format!("a.toml:5:1: {start}")), "{told}");
    }
    // A command's machine has disks and a network of its own.
    let run = "[run]\nimage = \"debian\"\noverlay = \"size=1G\"\npublish = \"8080:80\"\n";
    for step in [
        "disk-fault = \"root\"",
        "disk-fault = \"overlay\"",
        "net-fault = \"net0\"",
    ] {
        scenario(&format!("{run}[[step]]\n{step}\nfaults = []\n"));
    }
}

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
        "[vm]\nkernel = \"file:k\"\nserial = \"file:l\"\nconsole = \"pty\"\n{STEP}"
    ));
    assert!(console.vm.kernel.unwrap().ends_with("file:k"));
    assert!(matches!(console.vm.serial, Some(ConsoleConfig::File(path)) if path.is_absolute()));
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
    let text = include_str!("../../../../docs/scenarios.md");
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
