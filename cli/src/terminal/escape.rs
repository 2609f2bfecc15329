//! The keys that speak to `ampoule` instead of to the guest: `^A x`, `^A c`, and `^A ^A` for a `^A` of the guest's own.
//!
//! A pure state machine: bytes in, bytes and commands out.

/// `^A`, which announces a command.
const ANNOUNCE: u8 = 0x01;

/// What a person may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    /// Leave: the VM is stopped.
    Quit,
    /// Show the keys.
    Help,
}

/// Separates commands from input. Its state lasts from one piece of input to the next.
#[derive(Debug, Default)]
pub(crate) struct EscapeFilter {
    announced: bool,
}

impl EscapeFilter {
    /// Removes commands from `bytes`, hands each to `command`, and returns how many bytes at the start of the slice remain
    /// for the guest. A key that means nothing after `^A` is dropped with it.
    pub(crate) fn filter(&mut self, bytes: &mut [u8], mut command: impl FnMut(Command)) -> usize {
        let mut kept = 0;
        for index in 0..bytes.len() {
            let byte = bytes[index];
            let announced = std::mem::take(&mut self.announced);
            match (announced, byte) {
                (false, ANNOUNCE) => {
                    self.announced = true;
                    continue;
                }
                (true, b'x' | b'X') => {
                    command(Command::Quit);
                    continue;
                }
                (true, b'c' | b'C') => {
                    command(Command::Help);
                    continue;
                }
                (true, ANNOUNCE) | (false, _) => {}
                (true, _) => continue,
            }
            bytes[kept] = byte;
            kept += 1;
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds the pieces one after another.
    fn run(pieces: &[&[u8]]) -> (Vec<u8>, Vec<Command>) {
        let mut filter = EscapeFilter::default();
        let (mut out, mut commands) = (Vec::new(), Vec::new());
        for piece in pieces {
            let mut bytes = piece.to_vec();
            let kept = filter.filter(&mut bytes, |command| commands.push(command));
            out.extend_from_slice(&bytes[..kept]);
        }
        (out, commands)
    }

    #[test]
    fn input_without_commands_passes_unchanged() {
        let all: Vec<u8> = (2..=255).chain([0, b'x', b'c']).collect();
        assert_eq!(run(&[&all]), (all.clone(), vec![]));
    }

    #[test]
    fn commands_are_taken_out() {
        assert_eq!(run(&[b"a\x01xb"]), (b"ab".to_vec(), vec![Command::Quit]));
        assert_eq!(run(&[b"\x01c\x01c"]), (vec![], vec![Command::Help; 2]));
    }

    #[test]
    fn twice_is_once_for_the_guest() {
        assert_eq!(run(&[b"\x01\x01x"]), (b"\x01x".to_vec(), vec![]));
        assert_eq!(
            run(&[b"\x01\x01\x01x"]),
            (b"\x01".to_vec(), vec![Command::Quit])
        );
    }

    #[test]
    fn a_key_without_a_meaning_is_dropped() {
        assert_eq!(run(&[b"a\x01qb"]), (b"ab".to_vec(), vec![]));
    }

    #[test]
    fn pieces_make_no_difference() {
        let whole: &[u8] = b"one\x01\x01two\x01cthree\x01zfour\x01x";
        let expected = run(&[whole]);
        let bytes: Vec<&[u8]> = whole.chunks(1).collect();
        assert_eq!(run(&bytes), expected);
        for split in 0..whole.len() {
            assert_eq!(
                run(&[&whole[..split], &whole[split..]]),
                expected,
                "at {split}"
            );
        }
    }
}
