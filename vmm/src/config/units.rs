//! Sizes and durations as people write them, the same on the command line, in a file and in Rust.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Why a size or a duration could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a number followed by a known unit.
    #[error("\"{text}\" is not a {what} (write it as {examples})")]
    Malformed {
        /// What was given.
        text: String,
        /// "size" or "duration".
        what: &'static str,
        /// A few correct ones.
        examples: &'static str,
    },
    /// The number is right, the value does not fit.
    #[error("\"{text}\" is too large for a {what}")]
    TooLarge {
        /// What was given.
        text: String,
        /// "size" or "duration".
        what: &'static str,
    },
}

const SIZE_EXAMPLES: &str = "512M, 2G, 1536M or a number of bytes";
const DURATION_EXAMPLES: &str = "500ms, 5s, 2m or 1h";

/// A size in bytes: `512M`, `2G`, `4GiB`, `1048576`. Units are powers of 1024.
///
/// ```
/// use ampoule_vmm::config::MemorySize;
///
/// let size: MemorySize = "1536M".parse()?;
/// assert_eq!(size, MemorySize::mib(1536));
/// assert_eq!(MemorySize::bytes(2 << 30).to_string(), "2G");
/// # Ok::<(), ampoule_vmm::config::UnitError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "SizeRepr", into = "String")]
pub struct MemorySize(u64);

impl MemorySize {
    /// This many bytes.
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// This many MiB; the largest size where that overflows.
    pub const fn mib(mib: u64) -> Self {
        Self(mib.saturating_mul(1 << 20))
    }

    /// The size in bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
            if self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl FromStr for MemorySize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let malformed = || UnitError::Malformed {
            text: text.into(),
            what: "size",
            examples: SIZE_EXAMPLES,
        };
        let (number, unit) = split_number(text).ok_or_else(malformed)?;
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(malformed()),
        };
        number
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(1 << shift))
            .map(Self)
            .ok_or_else(|| UnitError::TooLarge {
                text: text.into(),
                what: "size",
            })
    }
}

impl From<MemorySize> for String {
    fn from(size: MemorySize) -> Self {
        size.to_string()
    }
}

/// A file may hold a size as text or as a plain number of bytes.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(
    untagged,
    expecting = "a size such as \"512M\" or \"2G\", or a number of bytes"
)]
enum SizeRepr {
    Bytes(u64),
    Text(String),
}

impl TryFrom<SizeRepr> for MemorySize {
    type Error = UnitError;

    fn try_from(repr: SizeRepr) -> Result<Self, UnitError> {
        match repr {
            SizeRepr::Bytes(bytes) => Ok(Self(bytes)),
            SizeRepr::Text(text) => text.parse(),
        }
    }
}

/// A span of time: `20us`, `500ms`, `5s`, `2m`, `1h`. A bare number is refused, because its unit would be a guess.
///
/// ```
/// use std::time::Duration;
/// use ampoule_vmm::config::Span;
///
/// let timeout: Span = "90s".parse()?;
/// assert_eq!(timeout.as_duration(), Duration::from_secs(90));
/// assert_eq!(Span::from(Duration::from_secs(120)).to_string(), "2m");
/// assert!("90".parse::<Span>().is_err());
/// # Ok::<(), ampoule_vmm::config::UnitError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
pub struct Span(Duration);

impl Span {
    /// The span as the standard library's type.
    pub const fn as_duration(self) -> Duration {
        self.0
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = self.0.as_micros();
        match us {
            0 => write!(f, "0s"),
            _ if us.is_multiple_of(3_600_000_000) => write!(f, "{}h", us / 3_600_000_000),
            _ if us.is_multiple_of(60_000_000) => write!(f, "{}m", us / 60_000_000),
            _ if us.is_multiple_of(1_000_000) => write!(f, "{}s", us / 1_000_000),
            _ if us.is_multiple_of(1000) => write!(f, "{}ms", us / 1000),
            _ => write!(f, "{us}us"),
        }
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let malformed = || UnitError::Malformed {
            text: text.into(),
            what: "duration",
            examples: DURATION_EXAMPLES,
        };
        let (number, unit) = split_number(text).ok_or_else(malformed)?;
        let unit_us = match unit {
            "us" => 1,
            "ms" => 1000,
            "s" => 1_000_000,
            "m" | "min" => 60_000_000,
            "h" => 3_600_000_000,
            _ => return Err(malformed()),
        };
        // A century: beyond it, deadline arithmetic on `Instant` could overflow.
        const LONGEST_US: u64 = 100 * 366 * 24 * 3_600_000_000;
        number
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(unit_us))
            .filter(|us| *us <= LONGEST_US)
            .map(|us| Self(Duration::from_micros(us)))
            .ok_or_else(|| UnitError::TooLarge {
                text: text.into(),
                what: "duration",
            })
    }
}

impl TryFrom<String> for Span {
    type Error = UnitError;

    fn try_from(text: String) -> Result<Self, UnitError> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

/// Splits `512M` into `512` and `M`; `None` without leading digits.
fn split_number(text: &str) -> Option<(&str, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("2G", 2 << 30),
            ("2GiB", 2 << 30),
            ("64k", 64 << 10),
            ("1T", 1 << 40),
            ("4096", 4096),
        ] {
            assert_eq!(
                text.parse::<MemorySize>().unwrap().as_bytes(),
                bytes,
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused_with_examples() {
        for text in ["", "M", "-1", "1.5G", "12X", "0x10", " 1M", "1 M", "ᴍ"] {
            let err = text.parse::<MemorySize>().unwrap_err();
            assert!(err.to_string().contains("512M"), "{text}: {err}");
        }
        assert!(matches!(
            "99999999999999999999".parse::<MemorySize>(),
            Err(UnitError::TooLarge { .. })
        ));
        assert!(matches!(
            "16777216T".parse::<MemorySize>(),
            Err(UnitError::TooLarge { .. })
        ));
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(
            "5s".parse::<Span>().unwrap().as_duration(),
            Duration::from_secs(5)
        );
        assert_eq!("90m".parse::<Span>().unwrap().to_string(), "90m");
        assert_eq!("1500ms".parse::<Span>().unwrap().to_string(), "1500ms");
        assert_eq!("20us".parse::<Span>().unwrap().to_string(), "20us");
        for text in ["5", "s", "", "-1s", "1.5s"] {
            assert!(
                matches!(text.parse::<Span>(), Err(UnitError::Malformed { .. })),
                "{text}"
            );
        }
        assert!(matches!(
            "99999999999h".parse::<Span>(),
            Err(UnitError::TooLarge { .. })
        ));
    }

    proptest! {
        #[test]
        fn a_size_survives_its_text(bytes in any::<u64>()) {
            let size = MemorySize::bytes(bytes);
            prop_assert_eq!(size.to_string().parse::<MemorySize>().unwrap(), size);
        }

        #[test]
        fn a_span_survives_its_text(us in 0u64..10_000_000_000_000) {
            let span = Span::from(Duration::from_micros(us));
            prop_assert_eq!(span.to_string().parse::<Span>().unwrap(), span);
        }

        #[test]
        fn no_text_panics(text in ".{0,12}") {
            let _ = text.parse::<MemorySize>();
            let _ = text.parse::<Span>();
        }
    }
}
