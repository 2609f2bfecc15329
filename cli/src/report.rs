//! The one printer: errors to standard error, results to standard output.
//!
//! An error is one line, `error: what: why: why that`, and one more, `help: what to do`, where there is something to do.
//! While the terminal is in raw mode a line feed alone does not return the carriage; all that goes to standard error passes
//! through [`print_stderr`], which knows.

use std::error::Error;
use std::io::{self, ErrorKind, Write};

use crate::paint::{Paint, Style};
use crate::terminal;

/// Something that a person is told before `ampoule` ends with an error.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What went wrong, in one line.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) help: Option<String>,
}

impl Failure {
    /// A failure without help.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: None,
        }
    }

    /// The failure that `error` and its causes tell of.
    pub(crate) fn from_error(error: &(dyn Error + 'static), help: Option<String>) -> Self {
        Self {
            message: chain(error),
            help,
        }
    }

    /// The same failure with advice.
    pub(crate) fn with_help(self, help: impl Into<String>) -> Self {
        Self {
            help: Some(help.into()),
            ..self
        }
    }

    /// Tells of it on standard error.
    pub(crate) fn print(&self) {
        print_stderr(&self.text(Paint::stderr()));
    }

    fn text(&self, paint: Paint) -> String {
        let mut text = format!("{} {}\n", paint.apply(Style::Bad, "error:"), self.message);
        if let Some(help) = &self.help {
            text += &format!("{} {help}\n", paint.apply(Style::Help, "help:"));
        }
        text
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let part = match error.downcast_ref::<io::Error>() {
            Some(err) => io_text(err),
            None => error.to_string(),
        };
        // A wrapper that only repeats its cause adds nothing.
        if !text.ends_with(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        next = error.source();
    }
    text
}

/// An operating system's error as the end of a sentence: "permission denied", without its number.
pub(crate) fn io_text(error: &io::Error) -> String {
    let text = error.to_string();
    let Some((text, _)) = text.split_once(" (os error") else {
        return text;
    };
    let mut chars = text.chars();
    match (chars.next(), chars.clone().next()) {
        // "I/O error" and its like keep their capital.
        (Some(first), Some(second)) if second.is_lowercase() => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}

/// Writes to standard output. A reader that has gone away is no error: it has seen what it wanted.
pub(crate) fn print_stdout(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(err) if err.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Writes to standard error, as its terminal needs it. There is nowhere to tell of a failure.
pub(crate) fn print_stderr(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = match terminal::is_raw() {
        true => stderr.write_all(text.replace('\n', "\r\n").as_bytes()),
        false => stderr.write_all(text.as_bytes()),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt;

    #[derive(Debug)]
    struct Wrapper(&'static str, io::Error);

    impl fmt::Display for Wrapper {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Wrapper {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.1)
        }
    }

    #[test]
    fn causes_are_joined_in_one_line() {
        let denied = io::Error::from_raw_os_error(libc::EACCES);
        let error = Wrapper("cannot open disk \"root.img\"", denied);
        assert_eq!(
            chain(&error),
            "cannot open disk \"root.img\": permission denied"
        );
    }

    #[test]
    fn a_cause_is_not_said_twice() {
        let denied = io::Error::from_raw_os_error(libc::EACCES);
        assert_eq!(
            chain(&Wrapper("permission denied", denied)),
            "permission denied"
        );
    }

    #[test]
    fn numbers_go_and_abbreviations_stay() {
        let text = |code| io_text(&io::Error::from_raw_os_error(code));
        assert_eq!(text(libc::ENOENT), "no such file or directory");
        assert_eq!(text(libc::EIO), "Input/output error".to_lowercase());
        assert_eq!(io_text(&io::Error::other("XYZ failed")), "XYZ failed");
    }

    #[test]
    fn help_is_a_line_of_its_own() {
        let failure = Failure::new("no kernel is given").with_help("name one");
        assert_eq!(
            failure.text(Paint::plain()),
            "error: no kernel is given\nhelp: name one\n"
        );
    }
}
