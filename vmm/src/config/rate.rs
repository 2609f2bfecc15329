//! Rate limits, as configuration. A device that has them has two keys for each: `iops` and `iops-burst`, for instance.

use std::num::NonZeroU64;

use ampoule_devices::rate_limiter::{Rate, RateLimit};

use super::{ConfigError, MemorySize};

/// The two values of one limit, with the name of their keys.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RateKeys {
    key: &'static str,
    per_second: Option<u64>,
    burst: Option<u64>,
}

impl RateKeys {
    /// Of operations.
    pub(crate) fn ops(key: &'static str, per_second: Option<u64>, burst: Option<u64>) -> Self {
        Self {
            key,
            per_second,
            burst,
        }
    }

    /// Of bytes.
    pub(crate) fn bytes(
        key: &'static str,
        per_second: Option<MemorySize>,
        burst: Option<MemorySize>,
    ) -> Self {
        Self::ops(
            key,
            per_second.map(MemorySize::as_bytes),
            burst.map(MemorySize::as_bytes),
        )
    }

    /// Judges them, for the device `name`.
    pub(crate) fn check(&self, name: &str) -> Result<(), ConfigError> {
        let (key, name) = (self.key, || name.to_owned());
        match (self.per_second, self.burst) {
            (Some(0), _) | (_, Some(0)) => Err(ConfigError::RateZero { name: name(), key }),
            (None, Some(_)) => Err(ConfigError::BurstAlone { name: name(), key }),
            _ => Ok(()),
        }
    }

    fn rate(&self, largest: NonZeroU64) -> Option<Rate> {
        let per_second = NonZeroU64::new(self.per_second?)?;
        let burst = self.burst.and_then(NonZeroU64::new);
        Some(Rate::new(per_second, burst, largest))
    }
}

/// The limit of a device whose largest operation has `largest` bytes.
pub(crate) fn limit(ops: RateKeys, bytes: RateKeys, largest: NonZeroU64) -> RateLimit {
    RateLimit {
        ops: ops.rate(NonZeroU64::MIN),
        bytes: bytes.rate(largest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_positive_and_a_burst_needs_one() {
        let check = |per_second, burst| RateKeys::ops("iops", per_second, burst).check("disk0");
        for good in [(None, None), (Some(1), None), (Some(u64::MAX), Some(1))] {
            assert_eq!(check(good.0, good.1), Ok(()));
        }
        for (per_second, burst) in [(Some(0), None), (Some(1), Some(0)), (None, Some(0))] {
            let error = check(per_second, burst).unwrap_err();
            assert_eq!(error.to_string(), "disk0 has a limit of 0 for iops");
        }
        let error = check(None, Some(1)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "disk0 has iops-burst without the limit iops"
        );
    }

    #[test]
    fn keys_become_limits() {
        let none = RateKeys::ops("pps", None, None);
        let bytes = RateKeys::bytes("bandwidth", Some(MemorySize::mib(10)), None);
        let largest = NonZeroU64::new(1 << 16).unwrap();
        let rate = |per_second, burst| {
            let count = |number| NonZeroU64::new(number).unwrap();
            Some(Rate::new(count(per_second), Some(count(burst)), largest))
        };
        let expected = RateLimit {
            ops: None,
            bytes: rate(10 << 20, 1 << 20),
        };
        assert_eq!(limit(none, bytes, largest), expected);
        let slow = RateKeys::bytes("bandwidth", Some(MemorySize::bytes(100)), None);
        let ops = RateKeys::ops("pps", Some(5), Some(50));
        let expected = RateLimit {
            ops: rate(5, 50),
            bytes: rate(100, 1 << 16),
        };
        assert_eq!(limit(ops, slow, largest), expected);
    }
}
