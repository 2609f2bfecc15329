//! Arguments of a command that are put together only where it is the command that is given: those of others cost a VM's start nothing.

use clap::builder::Resettable;
use clap::{ArgMatches, Args, Command, Error, FromArgMatches};

/// A command's arguments, not looked at by anybody who gives another command.
#[derive(Debug)]
pub(crate) struct Deferred<T>(pub(crate) T);

impl<T: FromArgMatches> FromArgMatches for Deferred<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        T::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.0.update_from_arg_matches(matches)
    }
}

impl<T: Args> Args for Deferred<T> {
    fn augment_args(command: Command) -> Command {
        command.defer(|command| described_as(command, T::augment_args))
    }

    fn augment_args_for_update(command: Command) -> Command {
        command.defer(|command| described_as(command, T::augment_args_for_update))
    }
}

/// What is said of the command stays; what is said of the type that its arguments have is for those who read it.
fn described_as(command: Command, augment: fn(Command) -> Command) -> Command {
    let about = command.get_about().cloned();
    let long_about = command.get_long_about().cloned();
    let command = augment(command);
    command
        .about(Resettable::from(about))
        .long_about(Resettable::from(long_about))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use crate::args::Cli;

    #[test]
    fn a_deferred_command_is_described_and_has_its_arguments() {
        let mut ampoule = Cli::command();
        let find = |ampoule: &clap::Command| ampoule.find_subcommand("test").unwrap().clone();
        assert_eq!(find(&ampoule).get_arguments().count(), 0, "not yet");
        ampoule.build();
        let test = find(&ampoule);
        assert!(
            test.get_about()
                .unwrap()
                .to_string()
                .starts_with("Test VMs")
        );
        assert!(test.get_arguments().any(|it| it.get_long() == Some("jobs")));
    }
}
