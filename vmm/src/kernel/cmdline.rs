//! The one limit on the command line that only the kernel image knows.

use std::path::Path;

use super::{KernelError, LoadedKernel};

/// Checks that `kernel`, loaded from `path`, takes a command line as long as `cmdline`. Only a bzImage says what it takes
/// (`cmdline_size` of its setup header, without the final NUL).
///
/// # Errors
/// [`KernelError::CmdlineTooLong`]: the kernel would cut it off without a word.
pub fn check_cmdline(kernel: &LoadedKernel, path: &Path, cmdline: &str) -> Result<(), KernelError> {
    let Some(header) = &kernel.setup_header else {
        return Ok(());
    };
    let (length, max) = (cmdline.len(), header.cmdline_size);
    if max != 0 && length as u64 > u64::from(max) {
        return Err(KernelError::CmdlineTooLong {
            path: path.into(),
            length,
            max,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use linux_loader::bootparam::setup_header;

    use super::*;
    use crate::kernel::{BootPath, KernelEntryPoint};

    fn kernel(header: Option<setup_header>) -> LoadedKernel {
        LoadedKernel {
            entry: KernelEntryPoint::Linux64 { entry: 0x100_0000 },
            setup_header: header.map(Box::new),
            end: 0x200_0000,
            path_taken: BootPath::InGuest,
        }
    }

    #[test]
    fn the_header_limits_the_length_without_the_nul() {
        let kernel = kernel(Some(setup_header {
            cmdline_size: 8,
            ..Default::default()
        }));
        assert!(check_cmdline(&kernel, "k".as_ref(), "12345678").is_ok());
        let err = check_cmdline(&kernel, "k".as_ref(), "123456789").unwrap_err();
        assert!(
            matches!(
                err,
                KernelError::CmdlineTooLong {
                    length: 9,
                    max: 8,
                    ..
                }
            ),
            "{err}"
        );
        assert!(err.remedy().is_some());
    }

    #[test]
    fn a_kernel_that_does_not_say_sets_no_limit() {
        let long = "x".repeat(5000);
        assert!(check_cmdline(&kernel(None), "k".as_ref(), &long).is_ok());
        let zero = kernel(Some(setup_header::default()));
        assert!(check_cmdline(&zero, "k".as_ref(), &long).is_ok());
    }
}
