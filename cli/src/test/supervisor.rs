//! Where scenarios will be run.

use super::args::{BisectArgs, TestArgs};
use super::scenario::Scenario;
use crate::report::Failure;

pub(crate) fn run(
    _args: &TestArgs,
    _scenarios: Vec<Scenario>,
    _seed: Option<u64>,
) -> Result<u8, Failure> {
    Err(Failure::new("scenarios cannot be run yet"))
}

pub(crate) fn bisect(_args: &BisectArgs) -> Result<u8, Failure> {
    Err(Failure::new("scenarios cannot be run yet"))
}
