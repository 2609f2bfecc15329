//! Complaints about the command line, in the form that all other errors have.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::args::COMMANDS;
use crate::report::Failure;

/// Handles what clap made of the command line instead of arguments: help and the version go to standard output (exit
/// status 0), a mistake to standard error. `command` is the first argument.
pub(crate) fn finish(err: &clap::Error, command: Option<&str>) -> Result<u8, Failure> {
    match err.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A reader that went away has seen enough.
            let _ = err.print();
            Ok(0)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = err.print();
            Ok(crate::EXIT_FAILURE)
        }
        _ => Err(failure(err, command)),
    }
}

/// clap's first paragraph is the complaint. Its tips become help; its usage is left to `--help`.
pub(crate) fn failure(err: &clap::Error, command: Option<&str>) -> Failure {
    let text = err.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let message: Vec<&str> = text
        .split("\n\n")
        .next()
        .unwrap_or_default()
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    Failure::new(message.join(" ")).with_help(help(err, command))
}

fn help(err: &clap::Error, command: Option<&str>) -> String {
    const KINDS: [ContextKind; 3] = [
        ContextKind::SuggestedArg,
        ContextKind::SuggestedSubcommand,
        ContextKind::SuggestedValue,
    ];
    let suggested = KINDS.iter().find_map(|kind| match err.get(*kind)? {
        ContextValue::String(name) => Some(name.as_str()),
        ContextValue::Strings(names) => names.first().map(String::as_str),
        _ => None,
    });
    match suggested {
        Some(name) => format!("did you mean \"{name}\"?"),
        None => match command {
            Some(command) if COMMANDS.contains(&command) => {
                format!("see `ampoule {command} --help`")
            }
            _ => "see `ampoule --help`".into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::Parser;

    fn complaint(args: &[&str]) -> (String, String) {
        let err = Cli::try_parse_from(["ampoule"].iter().chain(args)).unwrap_err();
        let failure = finish(&err, args.first().copied()).unwrap_err();
        (failure.message, failure.help.unwrap())
    }

    #[test]
    fn the_nearest_name_is_offered() {
        let (message, help) = complaint(&["run", "--kernal", "x"]);
        assert_eq!(message, "unexpected argument '--kernal' found");
        assert_eq!(help, "did you mean \"--kernel\"?");
        let (_, help) = complaint(&["rum"]);
        assert_eq!(help, "did you mean \"run\"?");
        let (_, help) = complaint(&["run", "--memory", "12X"]);
        assert_eq!(help, "see `ampoule run --help`");
        let (message, help) = complaint(&["run", "--entry", "linux46"]);
        assert!(
            message.contains("linux46") && message.contains("bzimage"),
            "{message}"
        );
        assert_eq!(help, "did you mean \"linux64\"?");
    }

    #[test]
    fn a_complaint_is_one_line() {
        for args in [
            &["run", "--memory", "12X"][..],
            &["run", "--memory"],
            &["run", "--cpus=1", "--cpus=2"],
        ] {
            let (message, _) = complaint(args);
            assert!(
                !message.contains('\n') && !message.contains("Usage"),
                "{message}"
            );
            assert!(
                message.contains(args[1].split('=').next().unwrap()),
                "{message}"
            );
        }
    }
}
