//! Finds a Linux kernel's last words in what a guest prints.
//!
//! A guest without a pvpanic driver has no other way to say that it panicked. [`PanicWatch`] is a
//! matcher over the byte stream, fed on whichever thread has the bytes; it does not matter how they
//! are cut into calls. It keeps at most one line and the last [`TAIL`] bytes.
//!
//! A line counts where the kernel's words begin it, after what `printk` may put before them (a
//! level, `<0>`; a time stamp, `[    1.234567] `; a caller, `[    T1] `), colour codes aside. The kernel
//! does not begin a new line when a program has left one unfinished (a shell's prompt, say): after a
//! time stamp, the words count anywhere in a line.

use std::collections::VecDeque;

/// How much output is kept for an excerpt, in bytes.
pub const TAIL: usize = 8192;

/// How much of a line is looked at as a whole, and given in a [`PanicEvent::Panic`], in bytes.
pub const LINE: usize = 512;

/// How much of an overlong line is kept when it is cut: more than the longest words to find, with a
/// time stamp.
const OVERLAP: usize = 160;

const PANIC: &[u8] = b"Kernel panic - not syncing";
const END: &[u8] = b"---[ end Kernel panic";
const INIT_BEFORE: &[u8] = b"Run ";
const INIT_AFTER: &[u8] = b" as init process";

/// What a kernel said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PanicEvent {
    /// It panicked. Comes when the line is complete.
    Panic {
        /// The line, from "Kernel panic" on, without control characters; at most [`LINE`] bytes of
        /// it.
        line: String,
    },
    /// It has said all it has to say of its panic.
    End,
    /// It starts the first program.
    Init,
}

/// The matcher.
#[derive(Debug, Default)]
pub struct PanicWatch {
    /// The line so far, without control characters and escape sequences.
    line: Vec<u8>,
    /// The beginning of `line` is not the beginning of the guest's line.
    cut: bool,
    escape: Escape,
    /// The last bytes, as they came.
    tail: VecDeque<u8>,
}

impl PanicWatch {
    /// A matcher that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks at the next bytes of the output, and calls `report` for each event in them.
    pub fn feed(&mut self, bytes: &[u8], report: &mut dyn FnMut(PanicEvent)) {
        self.remember(bytes);
        for &byte in bytes {
            match self.escape.step(byte) {
                Step::Text => self.line.push(byte),
                Step::LineEnd => self.end_line(report),
                Step::Nothing => {}
            }
            if self.line.len() >= LINE {
                self.cut_line(report);
            }
        }
    }

    /// The last lines of the output, oldest first: at most `count`, empty ones not counted, and no
    /// more than [`TAIL`] holds. Control characters are left out, so that they are safe to print.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let mut escape = Escape::default();
        let mut lines = Vec::new();
        let mut line = Vec::new();
        for &byte in &self.tail {
            match escape.step(byte) {
                Step::Text => line.push(byte),
                Step::LineEnd => lines.push(std::mem::take(&mut line)),
                Step::Nothing => {}
            }
        }
        lines.push(line);
        lines.retain(|line| !line.iter().all(|&byte| byte == b' '));
        lines.drain(..lines.len().saturating_sub(count));
        lines.iter().map(|line| printable(line)).collect()
    }

    fn remember(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(TAIL)..];
        let excess = (self.tail.len() + bytes.len()).saturating_sub(TAIL);
        self.tail.drain(..excess);
        self.tail.extend(bytes);
    }

    fn end_line(&mut self, report: &mut dyn FnMut(PanicEvent)) {
        if let Some((event, _)) = find(&self.line, self.cut) {
            report(event);
        }
        self.line.clear();
        self.cut = false;
    }

    /// Makes room in an overlong line. Words that were found go to its beginning, to be complete;
    /// where they are there already, they are reported.
    fn cut_line(&mut self, report: &mut dyn FnMut(PanicEvent)) {
        match find(&self.line, self.cut) {
            Some((event, 0)) => {
                report(event);
                self.line.clear();
                self.cut = true;
            }
            Some((_, start)) => {
                self.line.drain(..start);
                self.cut = false;
            }
            None => {
                self.line.drain(..self.line.len().saturating_sub(OVERLAP));
                self.cut = true;
            }
        }
    }
}

/// The first event in a line, and where its words begin in it.
fn find(line: &[u8], cut: bool) -> Option<(PanicEvent, usize)> {
    let mut at = 0;
    // Where the kernel's words can begin: at the line's beginning, and after each time stamp.
    let mut start = if cut {
        next_stamp(line, &mut at)?
    } else {
        skip_prefixes(line, 0)
    };
    loop {
        if let Some(event) = event_at(&line[start..]) {
            return Some((event, start));
        }
        at = at.max(start);
        start = next_stamp(line, &mut at)?;
    }
}

/// The event that a message consists of.
fn event_at(message: &[u8]) -> Option<PanicEvent> {
    if message.starts_with(END) {
        return Some(PanicEvent::End);
    }
    if message.starts_with(PANIC) {
        return Some(PanicEvent::Panic {
            line: printable(message),
        });
    }
    let program = message
        .strip_prefix(INIT_BEFORE)?
        .strip_suffix(INIT_AFTER)?;
    (!program.contains(&b' ')).then_some(PanicEvent::Init)
}

/// The end of the next time stamp (and what follows it of `printk`'s prefixes) from `at` on, which
/// moves past its bracket.
fn next_stamp(line: &[u8], at: &mut usize) -> Option<usize> {
    while let Some(bracket) = line[*at..].iter().position(|&byte| byte == b'[') {
        let open = *at + bracket;
        *at = open + 1;
        if let Some(end) = skip_stamp(line, open) {
            return Some(skip_prefixes(line, end));
        }
    }
    None
}

/// Skips levels, time stamps and callers.
fn skip_prefixes(line: &[u8], mut at: usize) -> usize {
    while let Some(end) = skip_stamp(line, at)
        .or_else(|| skip_level(line, at))
        .or_else(|| skip_caller(line, at))
    {
        at = end;
    }
    // "[    1.234567][    T1] " has its space at the end only.
    at + line[at..].iter().take_while(|&&byte| byte == b' ').count()
}

/// `<0>`.
fn skip_level(line: &[u8], at: usize) -> Option<usize> {
    let digits = bracketed(line, at, b'<', b'>')?;
    digits
        .iter()
        .all(u8::is_ascii_digit)
        .then_some(at + digits.len() + 2)
}

/// `[    1.234567]`.
fn skip_stamp(line: &[u8], at: usize) -> Option<usize> {
    let stamp = bracketed(line, at, b'[', b']')?;
    let mut parts = stamp.trim_ascii_start().split(|&byte| byte == b'.');
    let (seconds, fraction) = (parts.next()?, parts.next()?);
    let digits = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    (digits(seconds) && digits(fraction) && parts.next().is_none()).then_some(at + stamp.len() + 2)
}

/// `[    T1]` or `[    C0]`: a thread, or a CPU in interrupt context.
fn skip_caller(line: &[u8], at: usize) -> Option<usize> {
    let caller = bracketed(line, at, b'[', b']')?;
    match caller.trim_ascii_start() {
        [b'T' | b'C', digits @ ..] if digits.iter().all(u8::is_ascii_digit) => {
            Some(at + caller.len() + 2)
        }
        _ => None,
    }
}

/// What a short pair of brackets at `at` encloses.
fn bracketed(line: &[u8], at: usize, open: u8, close: u8) -> Option<&[u8]> {
    const LONGEST: usize = 24;
    let rest = line.get(at..)?.strip_prefix(&[open])?;
    let len = rest.iter().take(LONGEST).position(|&byte| byte == close)?;
    (len > 0).then(|| &rest[..len])
}

fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.trim_end()
        .chars()
        .filter(|c| !c.is_control())
        .collect()
}

/// What a byte is to a line.
enum Step {
    Text,
    LineEnd,
    Nothing,
}

/// Where in an escape sequence (ECMA-48) the stream is. Sequences are dropped: colours, and the title
/// and cursor games that shells play.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    /// After ESC.
    Start,
    /// After ESC and an intermediate byte, as in `ESC ( B`.
    Intermediate,
    /// In a control sequence: ends at a byte from `@` to `~`.
    Control,
    /// In a string (a window title): ends at BEL or ESC `\`.
    Text,
}

impl Escape {
    fn step(&mut self, byte: u8) -> Step {
        const ESC: u8 = 0x1b;
        const BEL: u8 = 0x07;
        let next = match (*self, byte) {
            // The kernel may begin in the middle of a sequence that a program was printing.
            (_, b'\n' | b'\r') => {
                *self = Self::None;
                return Step::LineEnd;
            }
            (_, ESC) => Self::Start,
            (Self::None, b'\t') => return Step::Text,
            (Self::None, byte) if byte < b' ' || byte == 0x7f => return Step::Nothing,
            (Self::None, _) => return Step::Text,
            (Self::Start, b'[') => Self::Control,
            (Self::Start, b']' | b'P' | b'^' | b'_' | b'X') => Self::Text,
            (Self::Start | Self::Intermediate, 0x20..=0x2f) => Self::Intermediate,
            (Self::Start | Self::Intermediate, _) => Self::None,
            (Self::Control, 0x20..=0x3f) => Self::Control,
            (Self::Control, _) => Self::None,
            (Self::Text, BEL) => Self::None,
            (Self::Text, _) => Self::Text,
        };
        *self = next;
        Step::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events(pieces: &[&[u8]]) -> Vec<PanicEvent> {
        let mut watch = PanicWatch::new();
        let mut events = Vec::new();
        for piece in pieces {
            watch.feed(piece, &mut |event| events.push(event));
        }
        events
    }

    fn panic(line: &str) -> PanicEvent {
        PanicEvent::Panic { line: line.into() }
    }

    const LINE_SEEN: &str = "Kernel panic - not syncing: sysrq triggered crash";

    #[test]
    fn a_panic_is_found_behind_every_prefix_of_printk() {
        for prefix in [
            "",
            "[    1.234567] ",
            "[12345.678901] ",
            "<0>",
            "<0>[    1.234567] ",
            "[    1.234567][    T1] ",
            "[    1.234567][T12345] ",
            "[    1.234567][    C0] ",
            "\x1b[31m",
            "\x1b[1;31m[    1.234567]\x1b[0m ",
            "\x1b]0;title\x07",
            "\x1b(B",
            "/ # [    1.234567] ",
            "a[i] = [2]; [x] [    1.234567] ",
            "unfinished \x1b[3\n",
        ] {
            for end in ["\n", "\r\n", "\r", "\x1b[0m\n"] {
                let text = format!("before\n{prefix}{LINE_SEEN}{end}after");
                assert_eq!(events(&[text.as_bytes()]), [panic(LINE_SEEN)], "{text:?}");
            }
        }
    }

    #[test]
    fn what_only_mentions_a_panic_is_none() {
        for line in [
            "echo Kernel panic - not syncing",
            "[x] Kernel panic - not syncing",
            "[1.2.3] Kernel panic - not syncing",
            "[ .5] Kernel panic - not syncing",
            "kernel panic - not syncing",
            "Kernel panic - not sync",
            "Kernel panic -\nnot syncing",
            "# panic: Kernel panic - not syncing",
            "they Run /init as init process",
            "Run the tests as init process",
        ] {
            assert_eq!(events(&[line.as_bytes(), b"\n"]), [], "{line:?}");
        }
    }

    #[test]
    fn the_last_words_and_the_first_program_are_found() {
        let text = b"[    0.5] Run /init as init process\r\n\
            [    1.5] Kernel panic - not syncing: Attempted to kill init!\r\n\
            [    1.6] CPU: 0 PID: 1\r\n\
            [    1.7] ---[ end Kernel panic - not syncing: Attempted to kill init! ]---\r\n";
        let line = "Kernel panic - not syncing: Attempted to kill init!";
        assert_eq!(
            events(&[text]),
            [PanicEvent::Init, panic(line), PanicEvent::End]
        );
    }

    #[test]
    fn a_line_counts_when_it_is_complete() {
        let mut watch = PanicWatch::new();
        let mut seen = Vec::new();
        watch.feed(LINE_SEEN.as_bytes(), &mut |event| seen.push(event));
        assert_eq!(seen, []);
        watch.feed(b"\r", &mut |event| seen.push(event));
        watch.feed(b"\n", &mut |event| seen.push(event));
        assert_eq!(seen, [panic(LINE_SEEN)]);
    }

    #[test]
    fn an_overlong_line_hides_no_panic_wherever_it_comes() {
        for filler in (0..3 * LINE).step_by(7) {
            let text = format!("{}[    1.234567] {LINE_SEEN}\n", "x".repeat(filler));
            assert_eq!(events(&[text.as_bytes()]), [panic(LINE_SEEN)], "{filler}");
        }
    }

    #[test]
    fn the_line_after_an_overlong_one_is_a_line_like_others() {
        let text = format!("{}\n{LINE_SEEN}\n", "x".repeat(LINE + 1));
        assert_eq!(events(&[text.as_bytes()]), [panic(LINE_SEEN)]);
    }

    #[test]
    fn an_overlong_panic_line_is_reported_once_and_cut() {
        let text = format!(
            "[    1.2] {LINE_SEEN}{}[ 1.2] end\nnext\n",
            "y".repeat(5000)
        );
        let found = events(&[text.as_bytes()]);
        let [PanicEvent::Panic { line }] = &found[..] else {
            panic!("{found:?}")
        };
        assert!(line.starts_with(LINE_SEEN) && line.ends_with('y'));
        assert_eq!(line.len(), LINE);
    }

    #[test]
    fn memory_is_bounded() {
        let mut watch = PanicWatch::new();
        for _ in 0..1000 {
            watch.feed(&[b'x'; 1000], &mut |_| {});
        }
        assert!(watch.line.capacity() <= 2 * LINE && watch.tail.capacity() <= 2 * TAIL);
        assert_eq!(watch.tail.len(), TAIL);
        watch.feed(&[b'z'; 3 * TAIL], &mut |_| {});
        assert!(watch.tail.iter().all(|&byte| byte == b'z') && watch.tail.len() == TAIL);
    }

    #[test]
    fn the_last_lines_are_clean_and_in_order() {
        let mut watch = PanicWatch::new();
        let text = b"one\r\n\r\n \n\x1b[31mtwo\x1b[0m\x07\x9b\nthree \n\xe2\x82\xac\tx";
        watch.feed(text, &mut |_| {});
        assert_eq!(
            watch.last_lines(10),
            ["one", "two\u{fffd}", "three", "\u{20ac}x"]
        );
        assert_eq!(watch.last_lines(2), ["three", "\u{20ac}x"]);
        assert!(watch.last_lines(0).is_empty());
        assert!(PanicWatch::new().last_lines(5).is_empty());
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(
            pieces in prop::collection::vec(
                prop::sample::select(vec![
                    "Kernel panic - not syncing", ": x", "[    1.234567] ", "\x1b[3", "1m", "\r", "\n",
                    "---[ end Kernel panic", "Run ", "/init", " as init process", "[", "filler",
                    "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
                ]),
                0..60,
            ),
            cuts in prop::collection::vec(1_usize..40, 1..20),
        ) {
            let text = pieces.concat();
            let whole = events(&[text.as_bytes()]);
            let mut rest = text.as_bytes();
            let mut parts = Vec::new();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (part, tail) = rest.split_at((*cut).min(rest.len()));
                parts.push(part);
                rest = tail;
            }
            prop_assert_eq!(events(&parts), whole);
        }

        #[test]
        fn any_bytes_will_do(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            let mut watch = PanicWatch::new();
            watch.feed(&bytes, &mut |_| {});
            for line in watch.last_lines(100) {
                prop_assert!(!line.chars().any(char::is_control));
            }
        }
    }
}
