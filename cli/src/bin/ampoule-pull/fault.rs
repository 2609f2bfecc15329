//! What can go wrong with a registry, as a person is told of it. What a registry says is shortened, and has no control characters left.

use std::error::Error;
use std::io;
use std::path::Path;

use oci_client::errors::{OciDistributionError, OciErrorCode};
use reqwest::StatusCode;
use serde_json::json;

/// The most that is repeated of what a registry says.
const MAX_WORDS: usize = 200;

/// An error for a person.
#[derive(Debug)]
pub(crate) struct Fault {
    message: String,
    help: Option<String>,
    /// Another try may do.
    is_passing: bool,
}

impl Fault {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: None,
            is_passing: false,
        }
    }

    /// One that another try may get past.
    pub(crate) fn passing(message: impl Into<String>) -> Self {
        Self {
            is_passing: true,
            ..Self::new(message)
        }
    }

    pub(crate) fn with_help(self, help: impl Into<String>) -> Self {
        Self {
            help: Some(help.into()),
            ..self
        }
    }

    /// The same, of this part of an image.
    pub(crate) fn of(self, what: &str) -> Self {
        Self {
            message: format!("{what}: {}", self.message),
            ..self
        }
    }

    pub(crate) fn is_passing(&self) -> bool {
        self.is_passing
    }

    pub(crate) fn of_file(action: &str, path: &Path, error: &io::Error) -> Self {
        let text = format!("cannot {action} \"{}\": {}", path.display(), plain(error));
        match error.kind() {
            io::ErrorKind::StorageFull => {
                Self::new(text).with_help("free space, by `ampoule image prune` for instance")
            }
            _ => Self::new(text),
        }
    }

    /// What an answer's status means; `words` is what the registry says about it.
    pub(crate) fn of_status(status: StatusCode, words: &str) -> Self {
        let said = match short(words) {
            words if words.is_empty() => String::new(),
            words => format!(" (\"{words}\")"),
        };
        match status.as_u16() {
            401 | 403 => Self::new(format!("the registry refuses it{said}"))
                .with_help("there is no such image, or it wants a login: docker login, podman login, skopeo login"),
            404 => Self::new(format!("the registry has none{said}")),
            429 => Self::passing(format!("the registry is asked too often{said}"))
                .with_help("wait, or log in: docker login, podman login, skopeo login"),
            code @ 500.. => Self::passing(format!("the registry fails with {code}{said}")),
            code => Self::new(format!("the registry answers with {code}{said}")),
        }
    }

    pub(crate) fn to_json(&self) -> String {
        json!({ "error": self.message, "help": self.help }).to_string()
    }
}

impl From<ampoule_store::Error> for Fault {
    fn from(error: ampoule_store::Error) -> Self {
        let help = error.remedy();
        let mut message = error.to_string();
        let mut next = error.source();
        while let Some(error) = next {
            message += &format!(": {}", short(&plain(error)));
            next = error.source();
        }
        Self {
            help,
            ..Self::new(message)
        }
    }
}

impl From<reqwest::Error> for Fault {
    fn from(error: reqwest::Error) -> Self {
        let mut last: &dyn Error = &error;
        while let Some(source) = last.source() {
            last = source;
        }
        let why = short(&plain(last));
        if error.is_timeout() {
            return Self::passing("the registry says nothing any more");
        }
        if error.is_redirect() {
            return Self::new("the registry leads in a circle");
        }
        if error.is_connect() {
            let fault = Self::new(format!("the registry cannot be reached: {why}"));
            return match why.contains("InvalidContentType") {
                true => {
                    fault.with_help("if it speaks plain HTTP and that is fine: --insecure-registry")
                }
                false => fault,
            };
        }
        Self::passing(format!("the connection to the registry has failed: {why}"))
    }
}

impl From<OciDistributionError> for Fault {
    fn from(error: OciDistributionError) -> Self {
        match error {
            OciDistributionError::RequestError(error) => error.into(),
            OciDistributionError::UnauthorizedError { .. } => {
                Self::of_status(StatusCode::UNAUTHORIZED, "")
            }
            OciDistributionError::RegistryError { envelope, .. } => {
                let first = envelope.errors.first();
                let status = match first.map(|error| &error.code) {
                    Some(OciErrorCode::Toomanyrequests) => StatusCode::TOO_MANY_REQUESTS,
                    Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => {
                        StatusCode::UNAUTHORIZED
                    }
                    _ => StatusCode::NOT_FOUND,
                };
                Self::of_status(status, first.map_or("", |error| &error.message))
            }
            OciDistributionError::ServerError { code, message, .. } => {
                let status = StatusCode::from_u16(code);
                Self::of_status(status.unwrap_or(StatusCode::BAD_GATEWAY), &message)
            }
            OciDistributionError::AuthenticationFailure(words) => {
                Self::of_status(StatusCode::UNAUTHORIZED, &words)
            }
            error => Self::new(format!(
                "the registry's answer is none: {}",
                short(&error.to_string())
            )),
        }
    }
}

/// An error's text without the operating system's number.
fn plain(error: &(impl Error + ?Sized)) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    match (chars.next(), chars.clone().next()) {
        (Some(first), Some(second)) if second.is_lowercase() => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}

/// The beginning of what a stranger says, on one line, without anything that a terminal would heed.
pub(crate) fn short(words: &str) -> String {
    let is_plain = |c: char| {
        !c.is_control()
            && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut text: String = words
        .trim()
        .chars()
        .take(MAX_WORDS)
        .map(|c| if is_plain(c) { c } else { ' ' })
        .collect();
    if words.trim().chars().nth(MAX_WORDS).is_some() {
        text.push('…');
    }
    text.trim().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stranger_says_is_short_and_harmless() {
        assert_eq!(short("  a\x1b[2Jb\r\nc \u{202e}d "), "a [2Jb  c  d");
        assert_eq!(short(&"x".repeat(1000)).chars().count(), MAX_WORDS + 1);
        let fault = Fault::of_status(StatusCode::NOT_FOUND, "<b>\n</b>");
        assert_eq!(fault.message, "the registry has none (\"<b> </b>\")");
        assert!(Fault::of_status(StatusCode::BAD_GATEWAY, "").is_passing());
        assert!(!Fault::of_status(StatusCode::FORBIDDEN, "").is_passing());
    }
}
