//! Frames over a Unix stream socket, each behind its length in four bytes: what QEMU's `-netdev stream` speaks, and passt.
//!
//! The frames have no `virtio_net_hdr`: nothing in them is left to their receiver. A frame that the socket takes in part is
//! finished before the next one is begun. What the peer says is not trusted: a length that no frame has ends the connection, and
//! no more is kept of what it sends than the longest frame and what came in the same read. A connection that has ended stays so.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_memory::VolatileSlice;

use super::net::{HEADER_SIZE, MAX_FRAME, NetBackend, Pieces, with_iovecs};

/// The length before each frame, big-endian.
const PREFIX: usize = 4;

/// What is read at once: the longest frame, or many shorter ones.
const BUFFER: usize = 128 << 10;
const _: () = assert!(BUFFER >= PREFIX + MAX_FRAME);

/// One end of a connection.
pub struct FrameStream {
    socket: UnixStream,
    incoming: Mutex<Incoming>,
    outgoing: Mutex<Outgoing>,
}

struct Incoming {
    buffer: Vec<u8>,
    /// What was read and not given on.
    start: usize,
    end: usize,
    ended: bool,
}

#[derive(Default)]
struct Outgoing {
    /// What is left of a frame that was sent in part.
    rest: Vec<u8>,
    ended: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ended() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl FrameStream {
    /// Frames over a connected socket.
    ///
    /// # Errors
    /// The host's.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            incoming: Mutex::new(Incoming {
                // Memory that is not used is not there.
                buffer: vec![0; BUFFER],
                start: 0,
                end: 0,
                ended: false,
            }),
            outgoing: Mutex::default(),
        })
    }

    /// Sends bytes from where they lie, as many as the socket takes.
    fn send_some(&self, pieces: &[VolatileSlice<'_>]) -> io::Result<usize> {
        with_iovecs(pieces, |pieces| {
            // SAFETY: `msghdr` is plain data, for which zeroes are valid.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_iov = pieces.as_ptr().cast_mut();
            message.msg_iovlen = pieces.len() as _;
            loop {
                // SAFETY: the message and its pieces live through the call, which writes neither. Each piece is memory that
                // `pieces` stands for; a guest may change its own meanwhile: no reference to it exists here.
                let sent = unsafe {
                    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
                    libc::sendmsg(self.socket.as_raw_fd(), &raw const message, flags)
                };
                match usize::try_from(sent) {
                    Ok(sent) => return Ok(sent),
                    Err(_) => {
                        let err = io::Error::last_os_error();
                        if err.kind() != io::ErrorKind::Interrupted {
                            return Err(err);
                        }
                    }
                }
            }
        })
    }

    /// Sends what is left of the last frame.
    fn finish(&self, outgoing: &mut Outgoing) -> io::Result<()> {
        while !outgoing.rest.is_empty() {
            let sent = self.send_some(&[(&mut outgoing.rest[..]).into()]);
            let sent = sent.inspect_err(|err| outgoing.failed(err))?;
            outgoing.rest.drain(..sent);
        }
        Ok(())
    }
}

impl Outgoing {
    fn failed(&mut self, err: &io::Error) {
        if err.kind() != io::ErrorKind::WouldBlock {
            self.ended = true;
            self.rest = Vec::new();
        }
    }
}

impl Incoming {
    /// The length of the first frame, as far as it is known, and whether all of it is there.
    fn first(&self) -> Option<(usize, bool)> {
        let there = &self.buffer[self.start..self.end];
        let prefix: [u8; PREFIX] = there.get(..PREFIX)?.try_into().ok()?;
        let len = usize::try_from(u32::from_be_bytes(prefix)).unwrap_or(usize::MAX);
        Some((len, there.len() - PREFIX >= len))
    }

    /// Reads what there is, behind what is there.
    fn fill(&mut self, socket: &UnixStream) -> io::Result<()> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        loop {
            match io::Read::read(&mut &*socket, &mut self.buffer[self.end..]) {
                Ok(0) => return Err(io::Error::other("the peer has closed the connection")),
                Ok(count) => {
                    self.end += count;
                    return Ok(());
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
    }

    /// The first frame, complete.
    fn frame(&mut self, socket: &UnixStream) -> io::Result<(usize, usize)> {
        loop {
            match self.first() {
                Some((len, _)) if len > MAX_FRAME => {
                    return Err(io::Error::other("the peer sends a frame that is too long"));
                }
                Some((len, true)) => return Ok((self.start + PREFIX, len)),
                _ => self.fill(socket)?,
            }
        }
    }
}

impl NetBackend for FrameStream {
    fn send(&self, packet: &[VolatileSlice<'_>]) -> io::Result<()> {
        let mut outgoing = lock(&self.outgoing);
        if outgoing.ended {
            return Err(ended());
        }
        self.finish(&mut outgoing)?;
        let total: usize = packet.iter().map(VolatileSlice::len).sum();
        let len = total.saturating_sub(HEADER_SIZE);
        let mut prefix = u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
        let mut pieces = Pieces::new();
        pieces.push((&mut prefix[..]).into());
        let mut skip = HEADER_SIZE;
        for piece in packet {
            let skipped = skip.min(piece.len());
            skip -= skipped;
            if let Ok(rest) = piece.offset(skipped)
                && !rest.is_empty()
            {
                pieces.push(rest);
            }
        }
        let sent = self.send_some(&pieces);
        let mut sent = sent.inspect_err(|err| outgoing.failed(err))?;
        for piece in pieces {
            let skipped = sent.min(piece.len());
            sent -= skipped;
            if let Ok(rest) = piece.offset(skipped)
                && !rest.is_empty()
            {
                let at = outgoing.rest.len();
                outgoing.rest.resize(at + rest.len(), 0);
                rest.copy_to(&mut outgoing.rest[at..]);
            }
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        match self.finish(&mut lock(&self.outgoing)) {
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }

    fn receive(&self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut incoming = lock(&self.incoming);
        if incoming.ended {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let (at, len) = match incoming.frame(&self.socket) {
            Ok(frame) => frame,
            Err(err) => {
                if err.kind() != io::ErrorKind::WouldBlock {
                    incoming.ended = true;
                    lock(&self.outgoing).ended = true;
                    // The peer is to know, too. It may have gone long before.
                    let _ = self.socket.shutdown(std::net::Shutdown::Both);
                }
                return Err(err);
            }
        };
        let header = [0; HEADER_SIZE];
        let mut written = 0;
        let mut parts = [&header[..], &incoming.buffer[at..at + len]];
        for piece in room {
            let mut place = *piece;
            for part in &mut parts {
                let now = part.len().min(place.len());
                place.copy_from(&part[..now]);
                *part = &part[now..];
                written += now;
                let Ok(rest) = place.offset(now) else { break };
                place = rest;
            }
        }
        incoming.start = at + len;
        Ok(written)
    }

    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use proptest::prelude::*;

    use super::*;

    fn pair() -> (FrameStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (FrameStream::new(ours).unwrap(), theirs)
    }

    fn prefixed(frame: &[u8]) -> Vec<u8> {
        [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at ^ at >> 8) as u8).collect()
    }

    /// Sends a packet in pieces of this size.
    fn send(stream: &FrameStream, frame: &[u8], piece: usize) -> io::Result<()> {
        let mut packet = [&[0xee; HEADER_SIZE][..], frame].concat();
        let pieces: Vec<VolatileSlice<'_>> = packet.chunks_mut(piece).map(Into::into).collect();
        stream.send(&pieces)
    }

    fn receive(stream: &FrameStream, room: &[usize]) -> io::Result<Vec<u8>> {
        let mut places: Vec<Vec<u8>> = room.iter().map(|len| vec![0xee; *len]).collect();
        let pieces: Vec<VolatileSlice<'_>> = places
            .iter_mut()
            .map(|place| place[..].as_mut().into())
            .collect();
        let len = stream.receive(&pieces)?;
        let mut all = places.concat();
        all.truncate(len);
        Ok(all)
    }

    fn kind<T>(result: io::Result<T>) -> io::ErrorKind {
        match result {
            Ok(_) => panic!("no error"),
            Err(err) => err.kind(),
        }
    }

    #[test]
    fn frames_go_without_their_headers() {
        let (stream, mut peer) = pair();
        for piece in [1, 5, 12, 13, 4096] {
            let frame = pattern(100);
            send(&stream, &frame, piece).unwrap();
            let mut got = vec![0; 104];
            peer.read_exact(&mut got).unwrap();
            assert_eq!(got, prefixed(&frame), "{piece}");
        }
    }

    #[test]
    fn frames_come_behind_an_empty_header() {
        let (stream, mut peer) = pair();
        assert_eq!(kind(receive(&stream, &[2000])), io::ErrorKind::WouldBlock);
        let frames = [pattern(60), pattern(MAX_FRAME), vec![], pattern(14)];
        let all: Vec<u8> = frames.iter().flat_map(|frame| prefixed(frame)).collect();
        let sender = std::thread::spawn(move || {
            peer.write_all(&all).unwrap();
            peer
        });
        let header = [0; HEADER_SIZE];
        for frame in &frames {
            let got = loop {
                match receive(&stream, &[3, 30, 40, 70_000]) {
                    Err(err) if err.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                    other => break other.unwrap(),
                }
            };
            assert_eq!(got, [&header[..], frame].concat());
        }
        let _peer = sender.join().unwrap();
        assert_eq!(kind(receive(&stream, &[2000])), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_frame_is_cut_to_its_room_and_the_next_is_whole() {
        let (stream, mut peer) = pair();
        peer.write_all(&prefixed(&pattern(500))).unwrap();
        peer.write_all(&prefixed(&pattern(20))).unwrap();
        assert_eq!(receive(&stream, &[12, 100]).unwrap().len(), 112);
        assert_eq!(
            receive(&stream, &[100]).unwrap()[HEADER_SIZE..],
            pattern(20)
        );
    }

    #[test]
    fn a_full_socket_finishes_a_frame_before_the_next() {
        let (stream, mut peer) = pair();
        let frame = pattern(60_000);
        let mut count = 0;
        while send(&stream, &frame, 4096).is_ok() {
            count += 1;
        }
        assert_eq!(kind(send(&stream, &frame, 4096)), io::ErrorKind::WouldBlock);
        // A frame was taken in part, and none of what was refused.
        let mut got = vec![0; (4 + frame.len()) * count];
        let reader = std::thread::spawn(move || {
            peer.read_exact(&mut got).unwrap();
            (peer, got)
        });
        while !lock(&stream.outgoing).rest.is_empty() {
            stream.flush().unwrap();
        }
        let (mut peer, got) = reader.join().unwrap();
        for (at, chunk) in got.chunks(4 + frame.len()).enumerate() {
            assert!(chunk == prefixed(&frame), "{at}");
        }
        peer.set_nonblocking(true).unwrap();
        assert_eq!(kind(peer.read(&mut [0])), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_length_that_no_frame_has_ends_the_connection() {
        for len in [MAX_FRAME as u32 + 1, 1 << 31, u32::MAX] {
            let (stream, mut peer) = pair();
            peer.write_all(&len.to_be_bytes()).unwrap();
            let err = receive(&stream, &[2000]).unwrap_err();
            assert_eq!(err.to_string(), "the peer sends a frame that is too long");
            // Once; then there is silence.
            peer.write_all(&prefixed(&pattern(60))).unwrap_err();
            assert_eq!(kind(receive(&stream, &[2000])), io::ErrorKind::WouldBlock);
            assert_eq!(
                kind(send(&stream, &pattern(60), 100)),
                io::ErrorKind::NotConnected
            );
            assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        }
    }

    #[test]
    fn a_peer_that_goes_ends_the_connection() {
        // In the middle of a frame, and of what is sent to it.
        let (stream, mut peer) = pair();
        peer.write_all(&prefixed(&pattern(60))[..30]).unwrap();
        while send(&stream, &pattern(60_000), 4096).is_ok() {}
        drop(peer);
        assert!(stream.flush().is_err());
        assert_eq!(
            kind(send(&stream, &pattern(60), 100)),
            io::ErrorKind::NotConnected
        );
        assert!(lock(&stream.outgoing).rest.is_empty());
        assert_ne!(kind(receive(&stream, &[2000])), io::ErrorKind::WouldBlock);
        assert_eq!(kind(receive(&stream, &[2000])), io::ErrorKind::WouldBlock);
        assert!(stream.flush().is_ok());
    }

    proptest! {
        /// However a peer's bytes are cut, the frames are the same; whatever they are, nothing panics.
        #[test]
        fn any_cut_gives_the_same_frames(
            lens in prop::collection::vec(0_usize..3000, 1..20),
            cuts in prop::collection::vec(1_usize..2000, 1..200),
        ) {
            let (stream, mut peer) = pair();
            let frames: Vec<Vec<u8>> = lens.iter().map(|len| pattern(*len)).collect();
            let all: Vec<u8> = frames.iter().flat_map(|frame| prefixed(frame)).collect();
            let (mut rest, mut got) = (&all[..], Vec::new());
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at(rest.len().min(*cut));
                peer.write_all(now).unwrap();
                rest = later;
                while let Ok(frame) = receive(&stream, &[7, 10_000]) {
                    got.push(frame[HEADER_SIZE..].to_vec());
                }
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(got, frames);
        }

        #[test]
        fn no_bytes_of_a_peer_s_panic(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let (stream, mut peer) = pair();
            peer.write_all(&bytes).unwrap();
            drop(peer);
            let mut errors = 0;
            for _ in 0..200 {
                match receive(&stream, &[5, 2000]) {
                    Err(err) if err.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => errors += 1,
                    Ok(_) => {}
                }
            }
            prop_assert_eq!(errors, 1);
        }
    }
}
