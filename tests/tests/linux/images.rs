//! Container images as umoci(1) makes them, run by `ampoule run`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use ampoule_tests::harness::shared;

use crate::command::command_of;
use crate::driver::{End, finish};

/// An OCI layout with all the images of these tests.
struct Layout {
    folder: PathBuf,
}

pub(crate) fn layout() -> PathBuf {
    shared("images", |folder| {
        let layout = Layout {
            folder: folder.to_owned(),
        };
        layout.umoci(&["init", "--layout", "images"]);
        layout.scratch();
        layout.layers();
        // umoci leaves some of it to its own user alone.
        let mut chmod = Command::new("chmod");
        chmod.args(["-R", "a+rX"]).arg(&layout.folder);
        assert!(chmod.status().unwrap().success());
    })
}

impl Layout {
    #[track_caller]
    fn umoci(&self, arguments: &[&str]) {
        let mut umoci = Command::new("umoci");
        let output = umoci
            .args(arguments)
            .current_dir(&self.folder)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }

    fn new_image(&self, name: &str) {
        self.umoci(&["new", "--image", &format!("images:{name}")]);
    }

    /// A layer with a file or folder of the host's.
    fn insert(&self, name: &str, source: &Path, target: &str) {
        let (image, source) = (format!("images:{name}"), source.to_str().unwrap());
        self.umoci(&["insert", "--image", &image, source, target]);
    }

    fn config(&self, name: &str, tag: &str, options: &[&str]) {
        let image = format!("images:{name}");
        let named = ["config", "--image", &image, "--tag", tag];
        self.umoci(&[&named, options].concat());
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// One static program, and nothing else; others that differ in what they say of it.
    fn scratch(&self) {
        self.new_image("empty");
        // umoci looks for extended attributes, which the file system of a lab host's programs has not.
        let program = self.folder.join("program");
        fs::copy("/bin/busybox", &program).unwrap();
        self.insert("empty", &program, "/busybox");
        let entry = ["--config.entrypoint", "/busybox", "--config.entrypoint"];
        let run = [&entry[..], &["echo", "--config.cmd", "from scratch"]].concat();
        self.config("empty", "scratch", &run);
        self.config(
            "empty",
            "no-entry",
            &["--config.entrypoint", "/usr/bin/missing"],
        );
        let ghost = ["--config.user", "ghost", "--config.cmd", "/busybox"];
        self.config("empty", "no-user", &ghost);
    }

    /// Many layers, of which later ones change, hide and bring back what is in earlier ones.
    fn layers(&self) {
        let bin = self.folder.join("base/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        for name in ["sh", "cat", "ls", "stat"] {
            symlink("busybox", bin.join(name)).unwrap();
        }
        for (name, content) in [
            ("changed", "1"),
            ("hidden", "1"),
            ("back", "1"),
            ("old/a", "1"),
            ("old/b", "1"),
        ] {
            self.write(&format!("base/srv/{name}"), content);
        }
        self.new_image("layers");
        let base = self.folder.join("base");
        self.insert("layers", &base, "/");
        self.insert("layers", &self.write("changed", "2"), "/srv/changed");
        let whiteout = ["insert", "--image", "images:layers", "--whiteout"];
        for path in ["/srv/hidden", "/srv/back"] {
            self.umoci(&[&whiteout[..], &[path]].concat());
        }
        self.insert("layers", &self.write("back", "3"), "/srv/back");
        // A folder in the place of another.
        self.write("new/c", "4");
        let new = self.folder.join("new");
        let new = new.to_str().unwrap();
        let opaque = ["insert", "--image", "images:layers", "--opaque"];
        self.umoci(&[&opaque[..], &[new, "/srv/old"]].concat());
        for number in 0..20 {
            let layer = self.write("layer", &format!("{number} "));
            self.insert("layers", &layer, &format!("/srv/many/{number:02}"));
            self.insert("layers", &layer, "/srv/last");
        }
    }
}

/// Runs one of the images.
fn run(name: &str, command: &[&str]) -> End {
    let image = layout().join("images");
    finish(command_of(
        &image,
        &["--net", "none", "--image-name", name],
        command,
    ))
}

pub(crate) fn many_layers_are_one_tree() {
    let script = "cd /srv; ls; cat changed back; ls old; cat many/* last; stat -c %U:%a changed";
    let end = run("layers", &["sh", "-c", script]).expect_code(0);
    let numbers: String = (0..20).map(|number| format!("{number} ")).collect();
    let expected = format!("back\nchanged\nlast\nmany\nold\n23c\n{numbers}19 \nUNKNOWN:644\n")
        .replace('\n', "");
    assert_eq!(end.text().replace('\n', ""), expected);
}

pub(crate) fn what_an_image_says_is_run_or_refused() {
    run("scratch", &[])
        .expect_code(0)
        .expect_silence()
        .expect_output("from scratch\n");
    run("scratch", &["echo-is-the-first-word"]).expect_output("echo-is-the-first-word\n");
    run("no-entry", &[])
        .expect_code(127)
        .expect_error("/usr/bin/missing");
    run("no-user", &[]).expect_code(125).expect_error("ghost");
}
