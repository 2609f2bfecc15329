//! A cache of a test's own, and `ampoule` with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::driver::{End, ampoule, finish};

pub(crate) struct Place {
    folder: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// A folder for anything.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.folder().join("cache/ampoule/images")
    }

    /// `ampoule` with this cache, and without what this machine knows of registries and proxies.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(ampoule());
        command
            .args(arguments)
            .env("XDG_CACHE_HOME", self.folder().join("cache"))
            .env("HOME", self.folder())
            .env_remove("DOCKER_CONFIG")
            .env_remove("REGISTRY_AUTH_FILE")
            .env_remove("XDG_RUNTIME_DIR");
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> End {
        finish(self.command(arguments))
    }

    /// `ampoule image` with these arguments, which succeeds without a word on standard error.
    #[track_caller]
    pub(crate) fn image(&self, arguments: &[&str]) -> String {
        let end = self.run(&[&["image"], arguments].concat());
        end.expect_code(0).expect_silence().text()
    }

    /// Pulls what cannot be pulled; the error. Nothing is left of it.
    #[track_caller]
    pub(crate) fn refused(&self, arguments: &[&str]) -> String {
        self.refused_with(&[&["image", "pull"], arguments].concat())
    }

    /// The same of a registry that would be waited for: not for long. Others are given the time that a busy machine may need.
    #[track_caller]
    pub(crate) fn refused_soon(&self, name: &str) -> String {
        self.refused_with(&["image", "pull", "--registry-timeout", "500ms", name])
    }

    #[track_caller]
    fn refused_with(&self, arguments: &[&str]) -> String {
        let end = self.run(arguments).expect_code(125);
        assert_eq!(end.text(), "");
        let lines = end.errors.lines().count();
        assert!(
            end.errors.starts_with("error: ") && lines <= 2,
            "{}",
            end.errors
        );
        assert_eq!(self.files(), Vec::<PathBuf>::new(), "{}", end.errors);
        end.errors
    }

    /// The same where other images were.
    #[track_caller]
    pub(crate) fn refused_with_locks(&self, arguments: &[&str]) -> String {
        let before = self.files();
        let end = self.run(&[&["image", "pull"], arguments].concat());
        let end = end.expect_code(125);
        assert_eq!(self.files(), before);
        end.errors
    }

    /// All files of the cache of images.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        collect(&self.images(), &mut files);
        files.sort();
        files
    }

    /// What `ampoule image ls` knows.
    #[track_caller]
    pub(crate) fn list(&self) -> Vec<Value> {
        serde_json::from_str(&self.image(&["ls", "--json"])).unwrap()
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => collect(&path, files),
            false => files.push(path),
        }
    }
}

/// The text of a JSON value.
#[track_caller]
pub(crate) fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no text"))
}
