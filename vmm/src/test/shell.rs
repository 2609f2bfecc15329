//! Commands through a shell on the console: for any guest that has one there, without a program of ours in it.
//!
//! A command's outputs go to files in the guest and come back in base64, so that they stay apart and whole although the kernel may
//! print in between; what arrives is checked by its length, and asked for again where something was mixed in. Words that mark
//! beginning and end are typed in two halves: their echo is not taken for them. The shell needs `base64` and `wc`, which busybox
//! and the coreutils have.

use std::io;
use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::pattern::Pattern;
use super::text_log::{Missed, Place, TextLog};

/// A terminal takes lines of up to 4095 bytes.
const MAX_LINE: usize = 4000;

/// How often an output is asked for that did not come whole.
const TRIES: usize = 4;

/// The most that a command's output may be, in bytes. A console is slow.
const MAX_OUTPUT: usize = 4 << 20;

/// Bytes of a file that are typed in a line.
const CHUNK: usize = 2048;

/// What came of a command in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandOutput {
    /// Its status, as a shell tells it: 128 and more for a signal, 126 and 127 for what is not run.
    pub status: u8,
    /// What it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error.
    pub stderr: Vec<u8>,
}

impl CommandOutput {
    /// Its standard output as text, without line feeds at the end.
    pub fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.stdout);
        text.trim_end_matches('\n').to_owned()
    }
}

/// Why a conversation with a shell failed.
#[derive(Debug)]
pub(super) enum ShellError {
    /// The answer did not come.
    Missed(Missed),
    /// Not even a shell did.
    Nobody(Missed),
    /// It answered that it cannot.
    Cannot(String),
    /// The console takes nothing.
    Console,
}

/// A conversation with a shell.
pub(super) struct Shell<'a> {
    pub(super) log: &'a TextLog,
    pub(super) cursor: &'a mut Place,
    pub(super) send: &'a mut dyn FnMut(&[u8]) -> io::Result<()>,
    /// Makes the words of this conversation different from those of another.
    pub(super) number: u32,
    pub(super) deadline: Instant,
}

impl Shell<'_> {
    /// Runs a line, in a shell of its own: an `exit` in it is the line's, not that of the shell on the console.
    pub(super) fn run(&mut self, line: &str) -> Result<CommandOutput, ShellError> {
        let n = self.number;
        self.set_up()?;
        let command =
            format!("( {line}\n) >$ampd/{n}o 2>$ampd/{n}e </dev/null; echo amp''d{n} $?\n");
        let status = self.ask(&command, &format!("^ampd{n} (?P<status>[0-9]+)$"))?;
        let status = status
            .parse()
            .map_err(|_| ShellError::Cannot("it told no status".into()))?;
        let stdout = self.fetch("$ampd/", &format!("{n}o"))?;
        let stderr = self.fetch("$ampd/", &format!("{n}e"))?;
        self.type_text(&format!("rm -f $ampd/{n}o $ampd/{n}e\n"))?;
        Ok(CommandOutput {
            status,
            stdout,
            stderr,
        })
    }

    /// The content of a file.
    pub(super) fn read(&mut self, path: &str) -> Result<Vec<u8>, ShellError> {
        self.set_up()?;
        let n = self.number;
        let quoted = quote(path);
        let check = format!("test -r {quoted} -a -f {quoted}; echo amp''r{n} $?\n");
        match self
            .ask(&check, &format!("^ampr{n} (?P<status>[0-9]+)$"))?
            .as_str()
        {
            "0" => self.fetch("", &quoted),
            _ => Err(ShellError::Cannot(format!(
                "there is no file {path} that can be read"
            ))),
        }
    }

    /// Writes a file.
    pub(super) fn write(&mut self, path: &str, content: &[u8]) -> Result<(), ShellError> {
        self.set_up()?;
        let n = self.number;
        let mut line = format!("true >$ampd/{n}w; echo amp''w{n} 0\n");
        for chunk in content.chunks(CHUNK) {
            self.ask(&line, &format!("^ampw{n} (?P<status>0)$"))?;
            line = format!(
                "echo {} >>$ampd/{n}w; echo amp''w{n} 0\n",
                BASE64_STANDARD.encode(chunk)
            );
        }
        self.ask(&line, &format!("^ampw{n} (?P<status>0)$"))?;
        let quoted = quote(path);
        let place =
            format!("base64 -d <$ampd/{n}w >{quoted}; echo amp''w{n} $?; rm -f $ampd/{n}w\n");
        match self
            .ask(&place, &format!("^ampw{n} (?P<status>[0-9]+)$"))?
            .as_str()
        {
            "0" => Ok(()),
            status => Err(ShellError::Cannot(format!(
                "cannot write {path}: status {status}"
            ))),
        }
    }

    /// Sees that there is a shell, and finds a folder to write to.
    fn set_up(&mut self) -> Result<(), ShellError> {
        let n = self.number;
        let line = format!(
            "for ampd in /tmp /run /dev/shm /dev; do mkdir -p $ampd/.ampoule$$ 2>/dev/null && test -w $ampd/.ampoule$$ && break; done; ampd=$ampd/.ampoule$$; echo amp''s{n} 0\n"
        );
        match self.ask(&line, &format!("^amps{n} (?P<status>0)$")) {
            Err(ShellError::Missed(missed)) => Err(ShellError::Nobody(missed)),
            other => other.map(drop),
        }
    }

    /// A file's content, by base64.
    fn fetch(&mut self, folder: &str, file: &str) -> Result<Vec<u8>, ShellError> {
        let n = self.number;
        for attempt in 0..TRIES {
            let k = attempt;
            let line = format!(
                "wc -c <{folder}{file} | {{ read s; echo amp''l{n}x{k} $s; }}; base64 {folder}{file}; echo amp''f{n}x{k} 0\n"
            );
            let size = self.ask(&line, &format!("^ampl{n}x{k} (?P<status>[0-9]+)$"))?;
            let size: usize = size.parse().unwrap_or(usize::MAX);
            if size > MAX_OUTPUT {
                return Err(ShellError::Cannot(format!("{file} is longer than 4 MiB")));
            }
            let from = *self.cursor;
            let end = self.wait(&format!("^ampf{n}x{k} (?P<status>0)$"))?;
            let text = self.log.between(from, end);
            if let Some(bytes) = decode(&text).filter(|bytes| bytes.len() == size) {
                return Ok(bytes);
            }
        }
        Err(ShellError::Cannot(
            "the console mixed other text into a command's output each time".into(),
        ))
    }

    /// Types a line and waits for an answer: its group `status`.
    fn ask(&mut self, line: &str, answer: &str) -> Result<String, ShellError> {
        self.type_text(line)?;
        let pattern = Pattern::regex(answer).map_err(|err| ShellError::Cannot(err.to_string()))?;
        let found = self.log.find(&pattern, *self.cursor, self.deadline);
        let found = found.map_err(ShellError::Missed)?;
        *self.cursor = found.end;
        Ok(found
            .captures
            .into_iter()
            .next()
            .map(|(_, text)| text)
            .unwrap_or_default())
    }

    fn wait(&mut self, answer: &str) -> Result<Place, ShellError> {
        let pattern = Pattern::regex(answer).map_err(|err| ShellError::Cannot(err.to_string()))?;
        let found = self.log.find(&pattern, *self.cursor, self.deadline);
        let found = found.map_err(ShellError::Missed)?;
        *self.cursor = found.end;
        Ok(found.start)
    }

    fn type_text(&mut self, text: &str) -> Result<(), ShellError> {
        if text.split('\n').any(|line| line.len() > MAX_LINE) {
            return Err(ShellError::Cannot(format!(
                "a line of the command is longer than the {MAX_LINE} bytes that a terminal takes"
            )));
        }
        (self.send)(text.as_bytes()).map_err(|_| ShellError::Console)
    }
}

/// A word for a shell that means just this text.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// What lines of base64 mean; others, which the kernel may have printed in between, are left out.
fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte);
    let lines = text.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
    let digits: Vec<u8> = lines
        .filter(|line| line.iter().all(is_digit))
        .flatten()
        .copied()
        .collect();
    BASE64_STANDARD.decode(digits).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};
    use std::thread;
    use std::time::Duration;

    #[test]
    fn lines_of_others_are_left_out() {
        let text = b"$ base64 file\r\naGVsbG8g\n[   1.0] a kernel's line\nd29ybGQ=\n";
        assert_eq!(decode(text).as_deref(), Some(&b"hello world"[..]));
        assert_eq!(decode(b""), Some(Vec::new()));
        assert_eq!(decode(b"abc"), None);
    }

    /// A shell of this host's, and a console that a kernel prints on, too.
    fn with_shell(noise: bool, talk: impl FnOnce(&mut Shell<'_>)) {
        let mut shell = Command::new("/bin/sh");
        let shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = shell.spawn().unwrap();
        let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let log = TextLog::default();
        let console = log.clone();
        let carrier = thread::spawn(move || {
            let mut buffer = [0; 50];
            let mut count = 0;
            while let Ok(got @ 1..) = output.read(&mut buffer) {
                console.write(&buffer[..got]);
                count += 1;
                // In the midst of the first answers.
                if noise && count % 7 == 0 && count < 100 {
                    console.write(b"\r\n[    1.000000] a kernel's line\r\n");
                }
            }
            console.end();
        });
        let mut cursor = 0;
        talk(&mut Shell {
            log: &log,
            cursor: &mut cursor,
            send: &mut |bytes| input.write_all(bytes),
            number: std::process::id(),
            deadline: Instant::now() + Duration::from_secs(60),
        });
        drop(input);
        carrier.join().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn commands_have_a_status_and_two_outputs() {
        with_shell(false, |shell| {
            let output = shell.run("printf 'a\\0b'; echo bad >&2; exit 3").unwrap();
            assert_eq!(
                (output.status, &*output.stdout, &*output.stderr),
                (3, &b"a\0b"[..], &b"bad\n"[..])
            );
            assert_eq!(shell.run("cat").unwrap().text(), "", "it reads nothing");
            assert_eq!(shell.run("no-such-program").unwrap().status, 127);
        });
    }

    #[test]
    fn an_output_that_was_mixed_with_others_is_asked_for_again() {
        with_shell(true, |shell| {
            let wanted: String = (1..=300).map(|at| format!("{at}\n")).collect();
            assert_eq!(shell.run("seq 300").unwrap().stdout, wanted.into_bytes());
        });
    }

    #[test]
    fn files_come_and_go_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("it's");
        let path = path.to_str().unwrap();
        let content: Vec<u8> = (0..10_000u32).map(|at| (at * 7) as u8).collect();
        with_shell(false, |shell| {
            shell.write(path, &content).unwrap();
            assert_eq!(std::fs::read(path).unwrap(), content);
            assert_eq!(shell.read(path).unwrap(), content);
            assert!(matches!(shell.read("/no/such"), Err(ShellError::Cannot(_))));
            assert!(matches!(
                shell.write("/no/such", b"x"),
                Err(ShellError::Cannot(_))
            ));
        });
    }

    #[test]
    fn quotes_are_quoted() {
        assert_eq!(quote("it's"), r"'it'\''s'");
    }
}
