//! `--limits memory=16M,log=64K`: the keys of a VM's limits, in one argument.

use ampoule_vmm::config::VmLimits;

use crate::key_list::{each, typed, unknown};

const KEYS: [&str; 5] = [
    "memory",
    "console-buffer",
    "console-file",
    "log",
    "requests",
];

/// Reads the argument.
pub(crate) fn parse(text: &str) -> Result<VmLimits, String> {
    let mut limits = VmLimits::default();
    each(text, |key, value| {
        match key {
            "memory" => limits.memory = typed(key, value)?,
            "console-buffer" => limits.console_buffer = typed(key, value)?,
            "console-file" => limits.console_file = typed(key, value)?,
            "log" => limits.log = typed(key, value)?,
            "requests" => limits.requests = typed(key, value)?,
            _ => return Err(unknown(key, "the limits", &KEYS)),
        }
        Ok(())
    })?;
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ampoule_vmm::config::MemorySize;

    #[test]
    fn all_keys_reach_their_fields() {
        let expected = VmLimits {
            memory: MemorySize::mib(1),
            console_buffer: MemorySize::mib(2),
            console_file: MemorySize::mib(3),
            log: MemorySize::mib(4),
            requests: 16,
        };
        let text = "memory=1M,console-buffer=2M,console-file=3M,log=4M,requests=16";
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse("requests=128").unwrap(), VmLimits::default());
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, complaint) in [
            ("", "empty key"),
            ("log=", "log needs a value"),
            ("memroy=1M", "did you mean memory?"),
            ("requests=70000", "requests: "),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }
}
