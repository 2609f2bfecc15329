//! tests/lab
fn main() {}
