//! What a network device stands on: something that takes and gives Ethernet frames, each behind a `virtio_net_hdr_v1` of 12
//! bytes.

use std::io;
use std::os::fd::RawFd;

use smallvec::SmallVec;
use vm_memory::VolatileSlice;

/// Length of the header before each frame (virtio 1.2, 5.1.6).
pub const HEADER_SIZE: usize = 12;

/// The most bytes of a frame, its header aside: an IP packet of 64 KiB, Ethernet and a VLAN tag.
pub const MAX_FRAME: usize = 65535 + 18;

/// The most pieces that [`NetBackend::send`] and [`NetBackend::receive`] take (IOV_MAX).
pub const MAX_PIECES: usize = 1024;

/// Pieces of memory; so many, without an allocation, as a frame of a stock driver has.
pub type Pieces<'a> = SmallVec<[VolatileSlice<'a>; 20]>;

/// What a frame may leave to its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Checksums. None of the others goes without.
    pub csum: bool,
    /// Segmentation of TCP over IPv4.
    pub tso4: bool,
    /// Segmentation of TCP over IPv6.
    pub tso6: bool,
    /// Fragmentation of UDP.
    pub ufo: bool,
}

/// Where frames come from and go to: one pair of queues. Called on I/O threads, without waiting.
pub trait NetBackend: Send + Sync {
    /// Sends a header and its frame.
    ///
    /// # Errors
    /// The host's; the frame is lost. `WouldBlock` where there is no room: it is not, and [`Self::fd`] becomes writable.
    fn send(&self, packet: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Goes on with what it took and could not pass on at once. Called when [`Self::fd`] may have become writable.
    ///
    /// # Errors
    /// The host's.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Receives a header and its frame; how many bytes were written. The rest of one that is longer than the room is lost.
    ///
    /// # Errors
    /// The host's; `WouldBlock` where there is no frame.
    fn receive(&self, room: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Becomes readable with a frame and writable with room for one; valid for as long as this lives.
    fn fd(&self) -> RawFd;

    /// What a frame that it is sent may leave to it. Nothing, unless it says so.
    fn takes(&self) -> Offloads {
        Offloads::default()
    }

    /// What the frames that it gives can leave to their receiver. Nothing, unless it says so.
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    /// What the frames that it gives may leave to their receiver from now on: some of [`Self::offloads`].
    ///
    /// # Errors
    /// The host's.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let _ = offloads;
        Ok(())
    }

    /// Whether this pair of several is to have a share of the frames. One that is alone always has them all.
    ///
    /// # Errors
    /// The host's.
    fn set_enabled(&self, enabled: bool) -> io::Result<()> {
        let _ = enabled;
        Ok(())
    }
}

/// Calls `use_it` with the pieces as system calls take them.
///
/// # Errors
/// `InvalidInput` where they are more than [`MAX_PIECES`]; else what `use_it` returns.
pub(super) fn with_iovecs<T>(
    pieces: &[VolatileSlice<'_>],
    use_it: impl FnOnce(&[libc::iovec]) -> io::Result<T>,
) -> io::Result<T> {
    if pieces.len() > MAX_PIECES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let iovecs: SmallVec<[libc::iovec; 20]> = pieces
        .iter()
        .map(|piece| libc::iovec {
            iov_base: piece.ptr_guard_mut().as_ptr().cast(),
            iov_len: piece.len(),
        })
        .collect();
    use_it(&iovecs)
}
