//! Which flags go together: what would have no effect is refused.

use ampoule_vmm::config::{ConsoleConfig, OnReboot, VmConfig};

use super::args::CommandArgs;
use crate::report::Failure;

/// Where a command is run from.
const HELP: &str = "say what to run it from: ampoule run IMAGE -- CMD, over a directory: ampoule run --root DIR -- CMD, or without either: ampoule run --file PROGRAM -- CMD";

impl CommandArgs {
    /// Whether a command is to be run; else it is a VM as the other flags describe it.
    pub(crate) fn is_asked(&self) -> bool {
        self.image.is_some() || self.root.is_some() || !self.file.is_empty()
    }

    /// The first of the flags of which this is true.
    fn first(flags: &[(&'static str, bool)]) -> Option<&'static str> {
        flags.iter().find(|it| it.1).map(|it| it.0)
    }

    /// Something that is about a command only.
    fn about_commands(&self) -> Option<&'static str> {
        Self::first(&[
            ("--interactive", self.interactive),
            ("--tty", self.tty),
            ("--env", !self.env.is_empty()),
            ("--workdir", self.workdir.is_some()),
            ("--user", self.user.is_some()),
            ("--entrypoint", self.entrypoint.is_some()),
            ("--hostname", self.hostname.is_some()),
            ("--read-only", self.read_only),
            ("--publish", !self.publish.is_empty()),
            ("--volume", !self.volume.is_empty()),
            ("--copy", !self.copy.is_empty()),
            ("--copy-out", !self.copy_out.is_empty()),
            ("--overlay", self.overlay.is_some()),
            ("--image-name", self.image_name.is_some()),
            ("--max-image-size", self.max_image_size.is_some()),
            ("--rm", self.rm),
            ("--quiet", self.quiet),
            ("CMD", !self.command.is_empty()),
        ])
    }

    /// Something that is about an image only.
    fn about_images(&self) -> Option<&'static str> {
        Self::first(&[
            ("--read-only", self.read_only && self.root.is_none()),
            ("--overlay", self.overlay.is_some()),
            ("--image-name", self.image_name.is_some()),
            ("--max-image-size", self.max_image_size.is_some()),
        ])
    }
}

/// Refuses what would be ignored, of a command's flags and of the VM's.
pub(crate) fn check(arguments: &CommandArgs, vm: &VmConfig) -> Result<(), Failure> {
    if !arguments.is_asked() {
        return match arguments.about_commands() {
            None => Ok(()),
            Some(flag) => Err(Failure::new(format!(
                "{flag} is about a command, and nothing says what to run it from"
            ))
            .with_help(HELP)),
        };
    }
    let refused = |what: &str, help: &str| Err(Failure::new(what).with_help(help));
    if arguments.image.is_some() && !arguments.file.is_empty() {
        return refused(
            "--file runs a program without an image, and there is an IMAGE",
            "to have the file in the image: --copy HOST:GUEST",
        );
    }
    if arguments.root.is_some() && (arguments.image.is_some() || !arguments.file.is_empty()) {
        return refused(
            "--root runs a command over a directory, and there is an IMAGE or a --file besides",
            "leave out one of them",
        );
    }
    if let (None, Some(flag)) = (&arguments.image, arguments.about_images()) {
        return Err(Failure::new(format!(
            "{flag} is about an IMAGE, and there is none"
        )));
    }
    if arguments.read_only && arguments.overlay.is_some() {
        return refused(
            "--overlay is for what the command writes, and with --read-only it writes nothing",
            "leave out one of them",
        );
    }
    if vm.initrd.is_some() {
        return refused(
            "--initrd is for a VM without a command: a command's has an initramfs of Ampoule's",
            "leave it out",
        );
    }
    if vm.vsock.is_some() {
        return refused(
            "--vsock is for a VM without a command: a command's socket device carries its streams",
            "leave it out",
        );
    }
    if vm.on_reboot == OnReboot::Restart {
        return refused(
            "--on-reboot restart is for a VM without a command: a command's ends with it",
            "leave it out",
        );
    }
    if vm.grace != VmConfig::default().grace {
        return refused(
            "--grace is for a VM without a command: a command gets the signals, and the third to end it ends its VM",
            "leave it out",
        );
    }
    for (flag, console) in [("--serial", &vm.serial), ("--console", &vm.console)] {
        if *console == Some(ConsoleConfig::Stdio) {
            return Err(Failure::new(format!(
                "{flag} stdio is for a VM without a command: the standard streams are the command's"
            ))
            .with_help(format!("{flag} file:PATH or {flag} pty leads elsewhere")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(arguments: &CommandArgs, vm: &VmConfig) -> String {
        check(arguments, vm).unwrap_err().message
    }

    #[test]
    fn what_is_about_a_command_needs_one() {
        assert!(check(&CommandArgs::default(), &VmConfig::default()).is_ok());
        for (name, arguments) in [
            (
                "--tty",
                CommandArgs {
                    tty: true,
                    ..CommandArgs::default()
                },
            ),
            (
                "--rm",
                CommandArgs {
                    rm: true,
                    ..CommandArgs::default()
                },
            ),
            (
                "CMD",
                CommandArgs {
                    command: vec!["x".into()],
                    ..CommandArgs::default()
                },
            ),
        ] {
            let text = refusal(&arguments, &VmConfig::default());
            assert!(text.starts_with(name), "{text}");
            let arguments = CommandArgs {
                image: Some("x".into()),
                ..arguments
            };
            assert!(check(&arguments, &VmConfig::default()).is_ok());
        }
    }

    #[test]
    fn what_a_command_has_itself_is_not_taken() {
        let arguments = CommandArgs {
            image: Some("x".into()),
            ..CommandArgs::default()
        };
        assert!(
            refusal(
                &arguments,
                &VmConfig {
                    initrd: Some("x".into()),
                    ..VmConfig::default()
                }
            )
            .contains("--initrd")
        );
        for (flag, vm) in [
            (
                "--serial",
                VmConfig {
                    serial: Some(ConsoleConfig::Stdio),
                    ..VmConfig::default()
                },
            ),
            (
                "--console",
                VmConfig {
                    console: Some(ConsoleConfig::Stdio),
                    ..VmConfig::default()
                },
            ),
            (
                "--on-reboot",
                VmConfig {
                    on_reboot: OnReboot::Restart,
                    ..VmConfig::default()
                },
            ),
        ] {
            assert!(refusal(&arguments, &vm).contains(flag));
            // Without a command it is as it was.
            assert!(check(&CommandArgs::default(), &vm).is_ok());
        }
        let pty = VmConfig {
            serial: Some(ConsoleConfig::Pty),
            ..VmConfig::default()
        };
        assert!(check(&arguments, &pty).is_ok());
    }
}
