//! Checks of servers in the guest, from the host: asked again and again until they answer as is expected, since a server takes its time.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use ampoule_vmm::test::Pattern as Wanted;

use super::guest::left;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// How long one try takes at most.
const TRY: Duration = Duration::from_secs(10);

/// The most of an answer that is looked at.
const MAX_ANSWER: usize = 1 << 20;

/// Captures, by name.
pub(super) type Captured = Vec<(String, String)>;

/// Why a server was not as expected: what it did last.
pub(super) struct NotSo(pub(super) String);

/// Tries until `once` succeeds or the time is over.
fn until(
    deadline: Instant,
    mut once: impl FnMut(Duration) -> Result<Captured, String>,
) -> Result<Captured, NotSo> {
    loop {
        let limit = left(deadline).min(TRY).max(Duration::from_millis(1));
        let why = match once(limit) {
            Ok(captured) => return Ok(captured),
            Err(why) => why,
        };
        if left(deadline) <= PAUSE {
            return Err(NotSo(why));
        }
        thread::sleep(PAUSE);
    }
}

/// Asks by HTTP.
pub(super) fn http(
    url: &str,
    status: u16,
    body: &[Wanted],
    deadline: Instant,
) -> Result<Captured, NotSo> {
    until(deadline, |limit| {
        let request = minreq::get(url)
            .with_timeout(limit.as_secs().max(1))
            .with_max_status_line_length(Some(4096))
            .with_max_headers_size(Some(64 << 10))
            .with_follow_redirects(false);
        let mut response = request.send_lazy().map_err(|err| err.to_string())?;
        let mut bytes = Vec::new();
        let mut buffer = [0; 8192];
        while bytes.len() < MAX_ANSWER {
            match response.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => bytes.extend_from_slice(&buffer[..count]),
                Err(err) => return Err(format!("the answer broke off: {err}")),
            }
        }
        let answered = response.status_code;
        if answered != status {
            return Err(format!("it answered with status {answered}, not {status}"));
        }
        all_or_excerpt(body, &bytes, "the answer")
    })
}

/// Connects, says something, and looks at the answer.
pub(super) fn tcp(
    address: &str,
    send: Option<&str>,
    expect: &[Wanted],
    deadline: Instant,
) -> Result<Captured, NotSo> {
    until(deadline, |limit| {
        let place = address
            .to_socket_addrs()
            .map_err(|err| err.to_string())?
            .next();
        let place = place.ok_or_else(|| format!("{address} is no address"))?;
        let said = |err: std::io::Error| crate::report::io_text(&err);
        let mut stream = TcpStream::connect_timeout(&place, limit).map_err(said)?;
        stream.set_read_timeout(Some(limit)).map_err(said)?;
        stream.set_write_timeout(Some(limit)).map_err(said)?;
        if let Some(text) = send {
            stream.write_all(text.as_bytes()).map_err(said)?;
        }
        let end = Instant::now() + limit;
        let mut bytes = Vec::new();
        let mut buffer = [0; 8192];
        loop {
            let found = all_or_excerpt(expect, &bytes, "the answer");
            // A forwarder of the host's takes connections for a guest that does not: only an answer proves that there is a server.
            if found.is_ok() && (!expect.is_empty() || !bytes.is_empty()) {
                return found;
            }
            match stream.read(&mut buffer) {
                _ if Instant::now() >= end || bytes.len() > MAX_ANSWER => return found,
                Ok(0) if expect.is_empty() => return Err("it closed the connection at once".into()),
                Ok(0) => return found,
                Ok(count) => bytes.extend_from_slice(&buffer[..count]),
                // A server that waits for its client to speak is there.
                Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return found;
                }
                Err(err) => return Err(said(err)),
            }
            if expect.is_empty() {
                return Ok(Vec::new());
            }
        }
    })
}

/// The same as [`all`], for a text that is told nowhere else.
pub(super) fn all_or_excerpt(
    patterns: &[Wanted],
    text: &[u8],
    what: &str,
) -> Result<Captured, String> {
    all(patterns, text, what).map_err(|why| format!("{why}, {}", excerpt(text)))
}

/// Whether all patterns are in a text; what they capture.
pub(super) fn all(patterns: &[Wanted], text: &[u8], what: &str) -> Result<Captured, String> {
    let mut captured = Vec::new();
    for pattern in patterns {
        match pattern.search(text) {
            Some(found) => captured.extend(found),
            None => return Err(format!("{pattern} is not in {what}")),
        }
    }
    Ok(captured)
}

/// The beginning of a text, in quotes.
fn excerpt(text: &[u8]) -> String {
    const SHOWN: usize = 300;
    if text.is_empty() {
        return "which is empty".into();
    }
    let shown = String::from_utf8_lossy(&text[..text.len().min(SHOWN)]);
    match text.len() > SHOWN {
        true => format!("which begins {shown:?}"),
        false => format!("which is {shown:?}"),
    }
}
