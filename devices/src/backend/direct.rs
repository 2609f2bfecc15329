//! Direct I/O (O_DIRECT): past the host's page cache, in whole blocks of the host's, from memory that suits its devices.
//!
//! A guest's disk has sectors of 512 bytes whatever the host's blocks are: an image must not look different from one host to the
//! next, and one whose partition table counts in sectors would be unreadable in larger ones. So what does not suit the host goes
//! through a buffer of fixed size, and a write of a part of a block reads the rest of it before. Such a write must have the disk
//! for itself: another one to the same block at the same time could be undone by it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError, RwLock};

use vm_memory::VolatileSlice;

use super::disk::{Route, SECTOR};

/// Bytes that go through the buffer at once; a multiple of every alignment.
const CHUNK: u64 = 128 << 10;
/// The largest block that is believed.
const MAX_ALIGNMENT: u64 = 64 << 10;

/// What the host wants of direct I/O on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Of places in the file, and of lengths.
    pub(super) offset: u64,
    /// Of addresses.
    pub(super) memory: u64,
}

/// Direct I/O on a file.
#[derive(Debug)]
pub(super) struct Direct {
    alignment: Alignment,
    /// Made when it is first needed.
    buffer: Mutex<Vec<u8>>,
    /// Held by each write; alone by one of a part of a block.
    writes: RwLock<()>,
}

impl Direct {
    pub(super) fn new(alignment: Alignment) -> Self {
        Self {
            alignment,
            buffer: Mutex::new(Vec::new()),
            writes: RwLock::new(()),
        }
    }

    pub(super) fn block(&self) -> u64 {
        self.alignment.offset
    }

    /// How a request can be served.
    pub(super) fn route(&self, data: &[VolatileSlice<'_>], offset: u64, write: bool) -> Route {
        let Alignment {
            offset: block,
            memory,
        } = self.alignment;
        let len: usize = data.iter().map(VolatileSlice::len).sum();
        if !offset.is_multiple_of(block) || !(len as u64).is_multiple_of(block) {
            return if write { Route::Alone } else { Route::Here };
        }
        let suits = |piece: &VolatileSlice<'_>| {
            (piece.ptr_guard().as_ptr() as u64).is_multiple_of(memory)
                && (piece.len() as u64).is_multiple_of(block)
        };
        match data.iter().all(suits) {
            true => Route::Straight,
            false => Route::Here,
        }
    }

    /// Keeps writes of parts of blocks away while `write` makes a write of whole ones.
    pub(super) fn beside_others<T>(&self, write: impl FnOnce() -> T) -> T {
        // Blocks of sectors have no parts.
        if self.alignment.offset <= SECTOR {
            return write();
        }
        let _shared = self.writes.read().unwrap_or_else(PoisonError::into_inner);
        write()
    }

    /// Reads through the buffer.
    pub(super) fn read(
        &self,
        file: &File,
        data: &[VolatileSlice<'_>],
        offset: u64,
    ) -> io::Result<()> {
        self.in_chunks(data, offset, |buffer, chunk| {
            fill(file, buffer, chunk.start, chunk.needed)?;
            chunk.each_piece(|piece, range| piece.copy_from(&buffer[range]));
            Ok(())
        })
    }

    /// Writes through the buffer.
    pub(super) fn write(
        &self,
        file: &File,
        data: &[VolatileSlice<'_>],
        offset: u64,
    ) -> io::Result<()> {
        let _alone = self.writes.write().unwrap_or_else(PoisonError::into_inner);
        let block = self.alignment.offset as usize;
        self.in_chunks(data, offset, |buffer, chunk| {
            let len = buffer.len();
            if chunk.skip > 0 {
                fill(file, &mut buffer[..block], chunk.start, block)?;
            }
            if chunk.needed < len && (chunk.skip == 0 || len > block) {
                let last = len - block;
                fill(file, &mut buffer[last..], chunk.start + last as u64, block)?;
            }
            chunk.each_piece(|piece, range| {
                piece.copy_to(&mut buffer[range]);
            });
            file.write_all_at(buffer, chunk.start)
        })
    }

    /// Goes over the blocks that a request touches, as many as fit the buffer at once.
    fn in_chunks(
        &self,
        data: &[VolatileSlice<'_>],
        offset: u64,
        mut work: impl FnMut(&mut [u8], &Chunk<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let Alignment {
            offset: block,
            memory,
        } = self.alignment;
        let align = block.max(memory) as usize;
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        buffer.resize(CHUNK as usize + align, 0);
        let first = buffer.as_ptr().align_offset(align);
        let len: u64 = data.iter().map(|piece| piece.len() as u64).sum();
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let start = at - at % block;
            let stop = end.next_multiple_of(block).min(start + CHUNK);
            let chunk = Chunk {
                data,
                done: (at - offset) as usize,
                start,
                skip: (at - start) as usize,
                needed: (end.min(stop) - start) as usize,
            };
            let blocks = &mut buffer[first..first + (stop - start) as usize];
            work(blocks, &chunk)?;
            at = end.min(stop);
        }
        Ok(())
    }
}

/// Blocks of a request.
struct Chunk<'a> {
    data: &'a [VolatileSlice<'a>],
    /// Bytes of the request that came before.
    done: usize,
    /// Where the first block is.
    start: u64,
    /// Bytes of the first block before the request.
    skip: usize,
    /// Bytes from `start` to the end of the request, or of the blocks.
    needed: usize,
}

impl Chunk<'_> {
    /// Calls `copy` with each piece of memory, and with where its bytes are among the blocks.
    fn each_piece(&self, mut copy: impl FnMut(&VolatileSlice<'_>, std::ops::Range<usize>)) {
        let (mut before, mut at) = (self.done, self.skip);
        for piece in self.data {
            if before >= piece.len() {
                before -= piece.len();
                continue;
            }
            let len = (piece.len() - before).min(self.needed - at);
            if let Ok(part) = piece.subslice(before, len) {
                copy(&part, at..at + len);
            }
            before = 0;
            at += len;
            if at == self.needed {
                return;
            }
        }
    }
}

/// Fills the first `needed` bytes of a buffer at least.
fn fill(file: &File, buffer: &mut [u8], offset: u64, needed: usize) -> io::Result<()> {
    let mut done = 0;
    while done < needed {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            // The file is shorter than it was.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

/// What the host wants of direct I/O on `file`, which is open for it.
///
/// # Errors
/// `Unsupported` where the host does not say, and takes no read of a block of usual size.
pub(super) fn alignment(file: &File) -> io::Result<Alignment> {
    match told(file) {
        Some(Alignment { offset: 0, .. }) => Err(io::ErrorKind::Unsupported.into()),
        Some(Alignment { offset, memory }) if is_believable(offset) && is_believable(memory) => {
            Ok(Alignment {
                // No request is about less.
                offset: offset.max(SECTOR),
                memory,
            })
        }
        _ => tried(file),
    }
}

fn is_believable(alignment: u64) -> bool {
    alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT
}

/// What statx(2) says, since Linux 6.1.
fn told(file: &File) -> Option<Alignment> {
    // SAFETY: all of it are numbers, for which zero is a value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is an empty string, which means the descriptor, and `found` is where the answer goes.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &raw mut found,
        )
    };
    (result == 0 && found.stx_mask & libc::STATX_DIOALIGN != 0).then(|| Alignment {
        offset: found.stx_dio_offset_align.into(),
        memory: u64::from(found.stx_dio_mem_align).max(1),
    })
}

/// The smallest block of which the host takes a read.
fn tried(file: &File) -> io::Result<Alignment> {
    for block in [SECTOR, 4096] {
        let alignment = Alignment {
            offset: block,
            memory: block,
        };
        // An odd multiple of the block, so that none of twice the size will do.
        let mut bytes = [0];
        let buffer = &[VolatileSlice::from(&mut bytes[..])];
        match Direct::new(alignment).read(file, buffer, block) {
            Err(err) if err.raw_os_error() == Some(libc::EINVAL) => {}
            Err(err) if err.kind() != io::ErrorKind::UnexpectedEof => return Err(err),
            _ => return Ok(alignment),
        }
    }
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: usize = 512 << 10;

    /// Cuts memory into pieces of these lengths, as far as it goes, and the rest.
    fn cut<'a>(bytes: &'a mut [u8], lengths: &[usize]) -> Vec<VolatileSlice<'a>> {
        let mut rest = bytes;
        let mut pieces = Vec::new();
        for len in lengths {
            let (piece, after) = rest.split_at_mut((*len).min(rest.len()));
            pieces.push(VolatileSlice::from(piece));
            rest = after;
        }
        pieces.push(VolatileSlice::from(rest));
        pieces
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn parts_of_blocks_are_read_and_written(
            block in prop::sample::select(vec![512_u64, 4096, 65536]),
            requests in prop::collection::vec(
                (any::<bool>(), 0_usize..SIZE / 512, 1_usize..600, prop::collection::vec(0_usize..5000, 0..5)),
                1..8,
            ),
        ) {
            let file = tempfile::tempfile().unwrap();
            let mut expected: Vec<u8> = (0..SIZE).map(|at| (at >> 9) as u8).collect();
            file.write_all_at(&expected, 0).unwrap();
            let direct = Direct::new(Alignment { offset: block, memory: 512 });
            for (number, (write, sector, sectors, lengths)) in (1_u8..).zip(requests) {
                let start = sector * 512;
                let end = (start + sectors * 512).min(SIZE);
                let mut bytes = vec![number; end - start];
                if write {
                    direct.write(&file, &cut(&mut bytes, &lengths), start as u64).unwrap();
                    expected[start..end].fill(number);
                } else {
                    direct.read(&file, &cut(&mut bytes, &lengths), start as u64).unwrap();
                    prop_assert!(bytes == expected[start..end]);
                }
                let mut all = vec![0; SIZE];
                file.read_exact_at(&mut all, 0).unwrap();
                prop_assert!(all == expected);
            }
            prop_assert_eq!(file.metadata().unwrap().len(), SIZE as u64);
        }
    }

    #[test]
    fn what_suits_the_host_goes_straight_and_a_part_of_a_block_alone() {
        let direct = Direct::new(Alignment {
            offset: 4096,
            memory: 512,
        });
        let mut bytes = vec![0; 32768];
        let first = bytes.as_ptr().align_offset(4096);
        let bytes = &mut bytes[first..first + 16384];
        let route = |range: std::ops::Range<usize>, offset, write| {
            // SAFETY: inside `bytes`, and nothing is read or written.
            let piece = unsafe {
                VolatileSlice::new(bytes.as_ptr().add(range.start).cast_mut(), range.len())
            };
            direct.route(&[piece], offset, write)
        };
        assert_eq!(route(0..4096, 4096, true), Route::Straight);
        assert_eq!(route(512..8704, 8192, false), Route::Straight);
        assert_eq!(route(1..4097, 4096, true), Route::Here);
        assert_eq!(route(0..512, 4096, true), Route::Alone);
        assert_eq!(route(0..4096, 512, true), Route::Alone);
        assert_eq!(route(0..4096, 512, false), Route::Here);
    }
}
