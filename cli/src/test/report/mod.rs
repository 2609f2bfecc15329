//! The files that tell what came of a run: `junit.xml`, `results.tap`, `results.json`, `report.html`.
//!
//! Each is complete or not there: it is written beside its name and renamed. All of them hold text of guests, who may write what they
//! like: `text` shows what would move, hide or turn something, and each format escapes the rest.

mod console;
mod html;
mod json;
mod junit;
#[cfg(test)]
pub(crate) mod sample;
mod tap;
pub(crate) mod text;

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

pub(crate) use console::Consoles;
pub(crate) use json::text as json_text;
pub(crate) use tap::Tap;

use crate::report::{Failure, io_text};
use crate::test::outcome::TestRun;

/// The name of the report that people read.
pub(crate) const HTML: &str = "report.html";

/// Writes all reports into the results folder, which is made where it is missing. `consoles` has the consoles of attempts whose
/// folders are gone; the others are read here.
///
/// # Errors
///
/// A file cannot be written: the first of them; the others are written all the same.
pub(crate) fn write(run: &TestRun, consoles: Consoles, results: &Path) -> Result<(), Failure> {
    fs::create_dir_all(results).map_err(|err| {
        Failure::new(format!(
            "cannot make the results folder \"{}\": {}",
            results.display(),
            io_text(&err)
        ))
    })?;
    let consoles = consoles.with_kept_ones(run);
    let page = html::page(run, &consoles, results).into_string();
    let texts = [
        ("junit.xml", junit::text(run)),
        ("results.tap", Ok(tap::text(run))),
        ("results.json", json::text(run)),
        (HTML, Ok(page)),
    ];
    let mut result = Ok(());
    for (name, text) in texts {
        let written = text.and_then(|text| {
            let path = results.join(name);
            put(results, &path, &text).map_err(|err| {
                Failure::new(format!(
                    "cannot write \"{}\": {}",
                    path.display(),
                    io_text(&err)
                ))
                .with_help("name a folder by --results that can be written, on a disk with room")
            })
        });
        result = result.and(written);
    }
    result
}

/// Others may read it, as far as the umask lets them: a CI system's other users do.
fn put(folder: &Path, path: &Path, text: &str) -> io::Result<()> {
    let mut file = tempfile::Builder::new()
        .prefix(".partial-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn all_files_are_written_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let results = folder.path().join("new/results");
        write(&sample::run(), sample::consoles(), &results).unwrap();
        // Once more, over those that are there.
        write(&sample::run(), sample::consoles(), &results).unwrap();
        let mut names: Vec<String> = fs::read_dir(&results)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["junit.xml", HTML, "results.json", "results.tap"]);
        // For looking at them: where somebody says where.
        if let Some(folder) = std::env::var_os("AMPOULE_SAMPLE_REPORT") {
            write(&sample::run(), sample::consoles(), Path::new(&folder)).unwrap();
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_is_told_and_the_others_are_there() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("results.tap/in the way")).unwrap();
        let failure = write(&sample::run(), sample::consoles(), folder.path()).unwrap_err();
        assert!(
            failure.message.contains("results.tap"),
            "{}",
            failure.message
        );
        assert!(folder.path().join(HTML).is_file());
        let partial = fs::read_dir(folder.path()).unwrap();
        assert_eq!(partial.count(), 4);
    }

    /// PyPI's junitparser, which nobody here wrote, finds in it what is in the run.
    #[test]
    fn junitparser_reads_it() {
        const SCRIPT: &str = r#"
import sys
try:
    import junitparser
except ImportError:
    sys.exit(77)
from junitparser.xunit2 import JUnitXml
xml = JUnitXml.fromfile(sys.argv[1])
cases = [case for suite in xml for case in suite]
kinds = lambda case: " ".join(type(it).__name__ + ":" + str(it.type) for it in case.result)
for case in cases:
    flaky, again = len(list(case.flaky_failures())), len(list(case.rerun_failures()))
    print(case.name, "|", kinds(case), "|", flaky, again)
print(len(xml), xml.tests, xml.failures, xml.errors, sum(suite.skipped for suite in xml))
"#;
        let folder = tempfile::tempdir().unwrap();
        write(&sample::run(), sample::consoles(), folder.path()).unwrap();
        let output = Command::new("python3")
            .args(["-c", SCRIPT])
            .arg(folder.path().join("junit.xml"))
            .stdin(Stdio::null())
            .output();
        let output = match output {
            Ok(output) if output.status.code() != Some(77) => output,
            _ => {
                let _ = writeln!(io::stderr(), "skipped: no Python with junitparser here");
                return;
            }
        };
        let said = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        for line in [
            "boot[kernel=6.1,memory=128M] |  | 0 0",
            "late-panic | Failure:panic | 0 1",
            "net |  | 1 0",
            "big | Error:host | 0 0",
            "later | Skipped:None | 0 0",
            "4 12 4 1 1",
        ] {
            assert!(said.lines().any(|it| it == line), "no {line:?} in {said}");
        }
    }
}
