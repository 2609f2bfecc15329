//! The library's examples that need no Linux.

use std::process::Command;

use ampoule_tests::guests;
use ampoule_tests::harness::example;

pub(crate) fn many_start_side_by_side() {
    let output = Command::new(example("many"))
        .args([guests::IDLE, "50"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(said.starts_with("50 VMs up after "), "{said}");
    // In a build that is not optimised, too.
    let kb = said.lines().nth(1).and_then(|line| line.split(' ').next());
    let kb: u64 = kb.and_then(|kb| kb.parse().ok()).expect(&said);
    assert!(kb < 700, "{said}");
}
