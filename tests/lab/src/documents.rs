//! What documents say of the working tree is so.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Every line of what must not break the VMM names tests, each of which is where it is said to be.
#[test]
fn what_proves_a_line_of_hostile_md_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = fs::read_to_string(root.join("docs/hostile.md")).unwrap();
    let (mut lines, mut number) = (BTreeSet::new(), 0);
    for line in text.lines() {
        if let Some((start, _)) = line.split_once(". ")
            && let Ok(next) = start.parse::<u32>()
        {
            assert_eq!(next, number + 1, "{line}");
            number = next;
        }
        let Some((path, names)) = line
            .trim_start()
            .strip_prefix("- `")
            .and_then(|rest| rest.split_once("`: "))
        else {
            continue;
        };
        let source = fs::read_to_string(root.join(path));
        let source = source.unwrap_or_else(|err| panic!("{path}: {err}"));
        for name in names.split(", ").map(|name| name.trim_matches('`')) {
            let function = format!("fn {name}(");
            let quoted = format!("\"{name}\"");
            let is_macro = name == "fuzz_target" && source.contains("fuzz_target!(");
            assert!(
                source.contains(&function) || source.contains(&quoted) || is_macro,
                "{number}: {path} has no {name}"
            );
            lines.insert(number);
        }
    }
    assert_eq!(number, 33);
    assert_eq!(lines, (1..=33).collect(), "lines without a test");
}
