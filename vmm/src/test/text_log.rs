//! A text that is written while it is searched: all that a guest prints, without what only moves cursors and changes colours.
//!
//! Bytes come in pieces of any size, from one thread; any thread may search and wait. Nothing is missed because of how it was cut:
//! a search goes over the whole text from where the last one ended. The lock is a leaf.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use anstream::adapter::StripBytes;

use super::pattern::{Forbidding, Pattern};
use crate::sync::{lock, wait_until};

/// What is kept in memory to be searched. A guest that prints more loses the oldest half of it.
const KEPT: usize = 16 << 20;

/// How long a text stays as it is when whoever prints it has stopped: only then an expression that could match more is believed
/// at the text's end.
const QUIET: Duration = Duration::from_millis(100);

/// Places in the text: of a byte, counted from the first one that was written.
pub type Place = u64;

/// A text that grows. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct TextLog {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    text: Vec<u8>,
    /// The place of the first byte of `text`.
    base: Place,
    strip: StripBytes,
    /// Where they go besides: as they come, and stripped.
    raw: Option<Box<dyn Write + Send>>,
    stripped: Option<Box<dyn Write + Send>>,
    forbidding: Forbidding,
    /// What comes before has been looked at for what is forbidden: the start of a line.
    looked: Place,
    forbidden: Option<Found>,
    grown: Instant,
    ended: bool,
}

/// A part of the text that was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where it starts.
    pub start: Place,
    /// Where it ends.
    pub end: Place,
    /// The text itself.
    pub text: String,
    /// The texts of the pattern's named groups.
    pub captures: Vec<(String, String)>,
}

/// Why a text was not found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missed {
    /// Not in time.
    Deadline,
    /// Whoever wrote it has ended.
    Ended,
    /// Something was there that is forbidden.
    Forbidden(Found),
}

impl Default for TextLog {
    fn default() -> Self {
        Self::new(None, None)
    }
}

impl TextLog {
    /// An empty text, of which all bytes go to `raw` as they come, and to `stripped` without control sequences. What cannot be
    /// written there is lost there alone.
    pub fn new(
        raw: Option<Box<dyn Write + Send>>,
        stripped: Option<Box<dyn Write + Send>>,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    text: Vec::new(),
                    base: 0,
                    strip: StripBytes::new(),
                    raw,
                    stripped,
                    forbidding: Forbidding::default(),
                    looked: 0,
                    forbidden: None,
                    grown: Instant::now(),
                    ended: false,
                }),
                changed: Condvar::new(),
            }),
        }
    }

    /// What may not be in it from now on.
    pub(super) fn forbid(&self, forbidding: Forbidding) {
        lock(&self.shared.state).forbidding = forbidding;
    }

    /// More of it.
    pub fn write(&self, bytes: &[u8]) {
        let mut state = lock(&self.shared.state);
        state.write(bytes);
        self.shared.changed.notify_all();
    }

    /// All of a stream, until it ends or fails, and then its end.
    pub fn carry(&self, mut from: impl io::Read) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => self.write(&buffer[..count]),
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.end();
    }

    /// Nothing more comes.
    pub fn end(&self) {
        let state = &mut *lock(&self.shared.state);
        state.look(true);
        state.ended = true;
        for sink in [&mut state.raw, &mut state.stripped].into_iter().flatten() {
            let _ = sink.flush();
        }
        self.shared.changed.notify_all();
    }

    /// Waits for `pattern` behind `from`, until `deadline`. What is forbidden ends the wait.
    ///
    /// # Errors
    /// Why it is not there.
    pub fn find(&self, pattern: &Pattern, from: Place, deadline: Instant) -> Result<Found, Missed> {
        let mut state = lock(&self.shared.state);
        loop {
            let begun = Instant::now();
            let found = state.find(pattern, from);
            // A search that is slow is made less often, so that a flood is not searched for ever.
            let pause = begun.elapsed().min(Duration::from_millis(200)) * 2;
            let mut wake = deadline;
            if let Some(found) = found {
                let settled = state.grown + QUIET;
                let may_grow = pattern.may_grow() && found.end == state.end() && !state.ended;
                if !may_grow || begun >= settled || begun >= deadline {
                    return Ok(found);
                }
                wake = wake.min(settled);
            } else {
                if let Some(found) = &state.forbidden {
                    return Err(Missed::Forbidden(found.clone()));
                }
                if state.ended {
                    return Err(Missed::Ended);
                }
                if begun >= deadline {
                    state.look(true);
                    return Err(match &state.forbidden {
                        Some(found) => Missed::Forbidden(found.clone()),
                        None => Missed::Deadline,
                    });
                }
            }
            let seen = state.end();
            let was_forbidden = state.forbidden.is_some();
            let next = Instant::now() + pause;
            // Until there is something new, and not before the pause is over.
            loop {
                let now = Instant::now();
                let is_news = state.end() != seen
                    || state.ended
                    || (state.forbidden.is_some() && !was_forbidden);
                if now >= wake || (is_news && now >= next) {
                    break;
                }
                let until = if is_news { wake.min(next) } else { wake };
                match wait_until(&self.shared.changed, state, Some(until)) {
                    Some(guard) => state = guard,
                    None => state = lock(&self.shared.state),
                }
            }
        }
    }

    /// Waits until it has not grown for `quiet`, or has ended; at most for `limit`.
    pub fn settle(&self, quiet: Duration, limit: Duration) {
        let end = Instant::now() + limit;
        let mut state = lock(&self.shared.state);
        while !state.ended {
            let until = (state.grown + quiet).min(end);
            if Instant::now() >= until {
                return;
            }
            match wait_until(&self.shared.changed, state, Some(until)) {
                Some(guard) => state = guard,
                None => state = lock(&self.shared.state),
            }
        }
    }

    /// Waits for its end, at most until `deadline`. Whether it came.
    pub fn wait_for_end(&self, deadline: Instant) -> bool {
        let mut state = lock(&self.shared.state);
        while !state.ended {
            match wait_until(&self.shared.changed, state, Some(deadline)) {
                Some(guard) => state = guard,
                None => return false,
            }
        }
        true
    }

    /// The first forbidden text, the line that is not complete included.
    pub fn forbidden(&self) -> Option<Found> {
        let mut state = lock(&self.shared.state);
        state.look(true);
        state.forbidden.clone()
    }

    /// How much of it there is.
    pub fn end_place(&self) -> Place {
        lock(&self.shared.state).end()
    }

    /// All that is kept of it.
    pub fn text(&self) -> Vec<u8> {
        lock(&self.shared.state).text.clone()
    }

    /// What is kept between two places.
    pub(super) fn between(&self, from: Place, to: Place) -> Vec<u8> {
        let state = lock(&self.shared.state);
        let (from, to) = (state.index(from), state.index(to));
        state.text[from.min(to)..to].to_vec()
    }

    /// Its last lines, `count` at most, without spaces at their ends; empty ones at the end are left out.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let state = lock(&self.shared.state);
        // Long lines are cut: an excerpt is for people.
        let from = state.text.len().saturating_sub(count.saturating_mul(512));
        let text = String::from_utf8_lossy(&state.text[from..]);
        let lines: Vec<&str> = text.trim_end().lines().map(str::trim_end).collect();
        let from = lines.len().saturating_sub(count);
        lines[from..].iter().map(|&line| line.to_owned()).collect()
    }
}

impl State {
    fn end(&self) -> Place {
        self.base + self.text.len() as Place
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(raw) = &mut self.raw
            && raw.write_all(bytes).is_err()
        {
            self.raw = None;
        }
        let before = self.text.len();
        for part in self.strip.strip_next(bytes) {
            let kept = part.iter().filter(|&&byte| byte != b'\r');
            self.text.extend(kept);
        }
        let new = &self.text[before..];
        if new.is_empty() {
            return;
        }
        if let Some(stripped) = &mut self.stripped
            && stripped.write_all(new).is_err()
        {
            self.stripped = None;
        }
        self.grown = Instant::now();
        self.look(false);
        if self.text.len() > KEPT {
            self.text.drain(..KEPT / 2);
            self.base += (KEPT / 2) as Place;
        }
    }

    /// Looks at the lines that are complete for what is forbidden; with `all`, at the last one, too.
    fn look(&mut self, all: bool) {
        let from = self.index(self.looked);
        let new = &self.text[from..];
        let complete = match all {
            true => new.len(),
            false => new
                .iter()
                .rposition(|&byte| byte == b'\n')
                .map_or(0, |at| at + 1),
        };
        let mut start = from;
        for line in self.text[from..from + complete].split_inclusive(|&byte| byte == b'\n') {
            if self.forbidden.is_none() && self.forbidding.forbids(line) {
                let line_start = self.base + start as Place;
                let text = String::from_utf8_lossy(line).trim_end().to_owned();
                self.forbidden = Some(Found {
                    start: line_start,
                    end: line_start + line.len() as Place,
                    text,
                    captures: Vec::new(),
                });
            }
            start += line.len();
        }
        if !all {
            self.looked = self.base + (from + complete) as Place;
        }
    }

    fn find(&self, pattern: &Pattern, from: Place) -> Option<Found> {
        let captures = pattern.find(&self.text, self.index(from))?;
        let whole = captures.get(0)?;
        Some(Found {
            start: self.base + whole.start() as Place,
            end: self.base + whole.end() as Place,
            text: String::from_utf8_lossy(whole.as_bytes()).into_owned(),
            captures: pattern.named(&captures),
        })
    }

    /// Where a place is in what is kept; what is lost counts as its start.
    fn index(&self, place: Place) -> usize {
        let index = usize::try_from(place.saturating_sub(self.base)).unwrap_or(usize::MAX);
        index.min(self.text.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn found(log: &TextLog, pattern: &Pattern, from: Place) -> Option<String> {
        log.find(pattern, from, Instant::now())
            .ok()
            .map(|found| found.text)
    }

    #[test]
    fn a_text_in_pieces_and_colours_is_found() {
        let log = TextLog::default();
        let wanted = Pattern::from("guest login:");
        for byte in b"Debian\r\n\x1b[1;32mgu\x1b[0mest \x1b]0;title\x07log\x1b[Kin:" {
            log.write(&[*byte]);
        }
        let found = log.find(&wanted, 0, soon()).unwrap();
        assert_eq!((found.start, found.end), (7, 19));
        assert_eq!(log.text(), b"Debian\nguest login:");
        let missed = log.find(&wanted, found.end, Instant::now());
        assert_eq!(missed, Err(Missed::Deadline), "it is consumed");
    }

    #[test]
    fn an_expression_waits_for_the_rest_of_what_it_matches() {
        let log = TextLog::default();
        log.write(b"version 6");
        let writer = log.clone();
        let pattern = Pattern::regex(r"version (?P<v>[0-9.]+)").unwrap();
        let found = thread::scope(|scope| {
            let search = scope.spawn(|| log.find(&pattern, 0, soon()));
            writer.write(b".1");
            writer.write(b".2 ready");
            search.join().unwrap().unwrap()
        });
        assert_eq!(found.captures, [("v".to_owned(), "6.1.2".to_owned())]);
    }

    #[test]
    fn the_end_ends_a_search() {
        let log = TextLog::default();
        log.write(b"abc");
        log.end();
        let missed = log.find(&"abd".into(), 0, soon());
        assert_eq!(missed, Err(Missed::Ended));
        assert!(log.find(&Pattern::regex("b.*").unwrap(), 0, soon()).is_ok());
        assert!(log.wait_for_end(Instant::now()));
    }

    #[test]
    fn what_is_forbidden_ends_a_search_when_its_line_is_complete() {
        let log = TextLog::default();
        let bad = [Pattern::from("BUG:")];
        log.forbid(Forbidding::new(&bad, &["BUG: allowed".into()]).unwrap());
        log.write(b"BUG: allowed\nfine\nBUG: no");
        assert_eq!(found(&log, &"fine".into(), 0).as_deref(), Some("fine"));
        log.write(b"t this\nmore");
        match log.find(&"nowhere".into(), 0, soon()) {
            Err(Missed::Forbidden(found)) => assert_eq!(found.text, "BUG: not this"),
            other => panic!("{other:?}"),
        }
        let log = TextLog::default();
        log.forbid(Forbidding::new(&bad, &[]).unwrap());
        log.write(b"BUG: without an end");
        assert_eq!(
            log.forbidden().map(|it| it.text).as_deref(),
            Some("BUG: without an end")
        );
    }

    #[test]
    fn a_flood_is_kept_in_part_and_places_stay() {
        let log = TextLog::default();
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        for _ in 0..(KEPT / 1024 + 100) {
            log.write(&line);
        }
        log.write(b"the end");
        assert!(log.text().len() <= KEPT);
        let found = log.find(&"the end".into(), 5, soon()).unwrap();
        assert_eq!(found.end, log.end_place());
        assert_eq!(log.end_place(), ((KEPT / 1024 + 100) * 1024 + 7) as Place);
    }

    #[test]
    fn both_sinks_get_it() {
        let (mut raw, mut stripped) = (io::pipe().unwrap(), io::pipe().unwrap());
        let log = TextLog::new(Some(Box::new(raw.1)), Some(Box::new(stripped.1)));
        log.write(b"\x1b[31mred\x1b[0m\r\n");
        drop(log);
        let (mut as_it_came, mut text) = (String::new(), String::new());
        io::Read::read_to_string(&mut raw.0, &mut as_it_came).unwrap();
        io::Read::read_to_string(&mut stripped.0, &mut text).unwrap();
        assert_eq!(as_it_came, "\x1b[31mred\x1b[0m\r\n");
        assert_eq!(text, "red\n");
    }
}
