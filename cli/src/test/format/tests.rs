//! The format through its door: files in a folder, and what becomes of them.

mod actions;
mod axes;
mod machines;
mod whole_files;

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
